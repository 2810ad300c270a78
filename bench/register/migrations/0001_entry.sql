-- A register per key, and every version that it ever had.
create table register.entry (
    bucket  smallint not null,
    id      bigint   not null,
    version bigint   not null,
    value   text     not null,
    primary key (bucket, id)
);

create table register.past (
    bucket  smallint not null,
    id      bigint   not null,
    version bigint   not null,
    value   text     not null,
    primary key (bucket, id, version)
);
