-- A CSV file that a seller has asked for. The file is a document of `media`, its id is kept here.
create table dashboard.report (
    bucket       smallint       not null,
    seller_id    bigint         not null,
    id           bigint         not null,
    first        date           not null,
    last         date           not null,
    state        text           not null check (state in ('requested', 'ready', 'failed')),
    note         text,
    rows         integer        not null default 0,
    size_bytes   bigint         not null default 0,
    document_id  bigint,
    requested_at timestamptz(3) not null,
    finished_at  timestamptz(3),
    expires_at   timestamptz(3) not null,
    primary key (bucket, seller_id, id),
    constraint report_has_its_document check ((state = 'ready') = (document_id is not null))
);

create index report_open on dashboard.report (bucket, seller_id) where state = 'requested';
create index report_expired on dashboard.report (expires_at);
