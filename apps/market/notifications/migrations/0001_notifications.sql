-- Everything about one recipient is in the bucket of the recipient's id.
-- Who can be told. `refusal` is what a mail server answered when it said that the address takes no mail.
create table notifications.recipient (
    bucket  smallint not null,
    id      bigint   not null,
    name    text     not null,
    email   text     not null,
    version bigint   not null,
    refusal text,
    primary key (bucket, id)
);

-- One inbox: notices are numbered from 1 to `newest`, read up to `read_to`, deleted up to `dropped_to`.
create table notifications.inbox (
    bucket       smallint not null,
    recipient_id bigint   not null,
    newest       bigint   not null,
    read_to      bigint   not null default 0,
    dropped_to   bigint   not null default 0,
    primary key (bucket, recipient_id),
    constraint inbox_in_order check (dropped_to <= newest and read_to <= newest)
);

create index inbox_full on notifications.inbox ((newest - dropped_to) desc, recipient_id)
    where newest - dropped_to > 500;

create table notifications.notice (
    bucket       smallint       not null,
    recipient_id bigint         not null,
    number       bigint         not null,
    kind         text           not null,
    data         text           not null,
    link         text           not null,
    mail         text           not null
        check (mail in ('queued', 'sent', 'unwanted', 'unconfigured', 'refused')),
    created_at   timestamptz(3) not null,
    primary key (bucket, recipient_id, number)
);

-- What was told already: outlives its notice, so that no repetition is told again.
create table notifications.told (
    bucket       smallint       not null,
    recipient_id bigint         not null,
    key          text           not null,
    told_at      timestamptz(3) not null,
    primary key (bucket, recipient_id, key)
);

create index told_by_age on notifications.told (told_at);

-- What somebody has said; without a row everything is wanted.
create table notifications.preference (
    bucket       smallint not null,
    recipient_id bigint   not null,
    kind         text     not null,
    mail         boolean  not null,
    push         boolean  not null,
    primary key (bucket, recipient_id, kind)
);

-- A browser that takes pushes.
create table notifications.subscription (
    bucket        smallint       not null,
    recipient_id  bigint         not null,
    id            bigint         not null,
    endpoint      text           not null,
    p256dh        text           not null,
    auth          text           not null,
    subscribed_at timestamptz(3) not null,
    primary key (bucket, recipient_id, id),
    unique (bucket, recipient_id, endpoint)
);

-- Keys that were made here because none were given; all in one bucket.
create table notifications.secret (
    bucket smallint not null,
    name   text     not null,
    value  bytea    not null,
    primary key (bucket, name)
);
