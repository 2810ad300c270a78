-- Everything about one seller is in the bucket of the seller's id.
-- An address that a seller wants to be called at. The secrets sign what is sent; the one before is good beside
-- the new one until `previous_until`. `failures` counts the tries that failed since `failing_since`, when the
-- first of them did; what is delivered clears both. `reason` is why it was disabled, if not by its seller.
create table webhooks.endpoint (
    bucket         smallint       not null,
    seller_id      bigint         not null,
    id             bigint         not null,
    url            text           not null,
    events         text[]         not null,
    enabled        boolean        not null default true,
    reason         text,
    secret         text           not null,
    previous       text,
    previous_until timestamptz(3),
    failures       integer        not null default 0,
    failing_since  timestamptz(3),
    version        integer        not null default 1,
    created_at     timestamptz(3) not null,
    updated_at     timestamptz(3) not null,
    primary key (bucket, seller_id, id),
    constraint endpoint_overlap check ((previous is null) = (previous_until is null)),
    constraint endpoint_failing check ((failures = 0) = (failing_since is null))
);

-- One message to one endpoint. Of one `subject` (an order, a listing) messages have growing numbers, each once.
-- `body` is what is sent, the same at each try; `status` is what was answered last, `note` what went wrong.
create table webhooks.delivery (
    bucket      smallint       not null,
    seller_id   bigint         not null,
    id          bigint         not null,
    endpoint_id bigint         not null,
    type        text           not null,
    subject     text           not null,
    number      bigint         not null,
    body        text           not null,
    state       text           not null check (state in ('queued', 'delivered', 'failed', 'unsent')),
    attempts    integer        not null default 0,
    status      smallint,
    note        text,
    job_id      uuid,
    created_at  timestamptz(3) not null,
    tried_at    timestamptz(3),
    primary key (bucket, seller_id, id)
);

create unique index delivery_once on webhooks.delivery (bucket, endpoint_id, subject, number);
create index delivery_of_endpoint on webhooks.delivery (bucket, endpoint_id, id desc);
create index delivery_queued on webhooks.delivery (bucket, endpoint_id) where state = 'queued';
create index delivery_by_age on webhooks.delivery (created_at);
