-- What can be found, in the bucket of its id. A row without words is a tombstone: the thing was removed at
-- `removed_at` in its `version`, and a put of that version or an older one comes too late.
-- `body` is the beginning of the text, for snippets; `form` is how the words were made.
create table search.document (
    bucket     smallint not null,
    kind       text     not null check (kind in ('article', 'listing', 'person')),
    id         bigint   not null,
    version    integer  not null,
    form       smallint not null,
    title      text     not null,
    body       text     not null,
    names      tsvector not null,
    words      tsvector not null,
    removed_at timestamptz(3),
    primary key (bucket, kind, id)
);

-- Every search walks the list of what was put lately as well, so it is kept short.
create index document_of_name on search.document using gin (names) with (gin_pending_list_limit = 512);
create index document_of_word on search.document using gin (words) with (gin_pending_list_limit = 512);

create index document_removed on search.document (removed_at) where removed_at is not null;

-- Where a bulk load leaves its rows for a moment: COPY cannot bring tsvectors, only their text.
create table search.arriving (
    bucket  smallint not null,
    kind    text     not null,
    id      bigint   not null,
    version integer  not null,
    form    smallint not null,
    title   text     not null,
    body    text     not null,
    names   text     not null,
    words   text     not null,
    primary key (bucket, kind, id)
);
