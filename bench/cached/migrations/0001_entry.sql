-- A register per key, and every version that it ever had. Four registers are a group.
create table cached.entry (
    bucket  smallint not null,
    id      bigint   not null,
    version bigint   not null,
    value   text     not null,
    primary key (bucket, id)
);

create table cached.past (
    bucket  smallint not null,
    id      bigint   not null,
    version bigint   not null,
    value   text     not null,
    primary key (bucket, id, version)
);
