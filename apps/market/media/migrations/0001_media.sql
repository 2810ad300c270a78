-- A medium and all that is attached to it are in the owner's bucket: an attachment is one transaction.
-- A row is written after its blobs are: `blobs` never names one that is not there. It is a JSON list of
-- {variant, path, content_type, size, width, height}; `original` is what was uploaded, or the document.
-- `expires_at` is when it is deleted: null while it is attached to something.
create table media.medium (
    bucket       smallint       not null,
    id           bigint         not null,
    owner_id     bigint         not null,
    kind         text           not null check (kind in ('image', 'video', 'document')),
    purpose      text           not null check (purpose in ('public', 'private')),
    name         text           not null,
    key          text,
    content_type text           not null,
    size         bigint         not null check (size > 0),
    width        integer,
    height       integer,
    state        text           not null check (state in ('processing', 'waiting', 'ready', 'failed')),
    note         text,
    blobs        jsonb          not null,
    expires_at   timestamptz(3),
    created_at   timestamptz(3) not null,
    updated_at   timestamptz(3) not null,
    primary key (bucket, id),
    constraint medium_document_is_private check (kind <> 'document' or purpose = 'private')
);

create unique index medium_document on media.medium (bucket, owner_id, key) where key is not null;
create index medium_expiring on media.medium (expires_at, id) where expires_at is not null;
create index medium_waiting on media.medium (updated_at, id) where state = 'waiting';

-- What owners attach media to. `version` orders what was told about it; null when it is gone.
create table media.thing (
    bucket   smallint not null,
    owner_id bigint   not null,
    thing    text     not null,
    version  bigint,
    primary key (bucket, owner_id, thing)
);

create table media.attachment (
    bucket    smallint not null,
    owner_id  bigint   not null,
    thing     text     not null,
    medium_id bigint   not null,
    primary key (bucket, owner_id, thing, medium_id)
);

create index attachment_medium on media.attachment (bucket, medium_id);
