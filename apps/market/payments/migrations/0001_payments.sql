-- Everything about one order is in the order's bucket: what is settled and what is booked is one transaction.
-- A row is written before the provider is asked; `ask_at` is when the reconciliation asks about it.
-- `abandoned` is why a pending charge is no longer wanted; `refunded` counts refunds that are not failed.
create table payments.charge (
    bucket       smallint       not null,
    order_id     bigint         not null,
    attempt      integer        not null default 1,
    amount       bigint         not null check (amount > 0),
    currency     text           not null,
    source       text           not null,
    state        text           not null check (state in ('pending', 'succeeded', 'declined', 'cancelled')),
    provider_id  text,
    decline_code text,
    abandoned    text,
    refunded     bigint         not null default 0,
    refunds      integer        not null default 0,
    asks         integer        not null default 0,
    ask_at       timestamptz(3) not null,
    created_at   timestamptz(3) not null,
    updated_at   timestamptz(3) not null,
    primary key (bucket, order_id),
    constraint charge_not_refunded_beyond check (refunded between 0 and amount),
    constraint charge_known_when_succeeded check (state <> 'succeeded' or provider_id is not null)
);

create index charge_open on payments.charge (ask_at, order_id) where state = 'pending';

create table payments.refund (
    bucket      smallint       not null,
    order_id    bigint         not null,
    number      integer        not null,
    key         text           not null,
    amount      bigint         not null check (amount > 0),
    currency    text           not null,
    reason      text           not null,
    state       text           not null check (state in ('pending', 'succeeded', 'failed')),
    provider_id text,
    asks        integer        not null default 0,
    ask_at      timestamptz(3) not null,
    created_at  timestamptz(3) not null,
    updated_at  timestamptz(3) not null,
    primary key (bucket, order_id, number)
);

create unique index refund_once on payments.refund (bucket, order_id, key);
create index refund_open on payments.refund (ask_at, order_id) where state = 'pending';

-- Webhooks that have had their effect.
create table payments.event (
    bucket      smallint       not null,
    order_id    bigint         not null,
    event_id    text           not null,
    kind        text           not null,
    received_at timestamptz(3) not null,
    primary key (bucket, order_id, event_id)
);

-- The ledger. A transaction is the entries of one order and number; its amounts add up to 0.
create table payments.entry (
    bucket     smallint       not null,
    order_id   bigint         not null,
    number     integer        not null,
    account    text           not null check (account in ('provider', 'orders')),
    amount     bigint         not null check (amount <> 0),
    currency   text           not null,
    created_at timestamptz(3) not null,
    primary key (bucket, order_id, number, account)
);

create function payments.refuse_imbalance() returns trigger language plpgsql as $$
begin
    if exists (
        select 1 from payments.entry
        where bucket = new.bucket and order_id = new.order_id and number = new.number
        group by currency
        having sum(amount) <> 0
    ) then
        raise exception 'entries of order %, transaction % do not add up to 0', new.order_id, new.number
            using errcode = 'check_violation';
    end if;
    return null;
end
$$;

create constraint trigger entry_balances after insert on payments.entry
    deferrable initially deferred for each row execute function payments.refuse_imbalance();

create function payments.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only: book the opposite instead' using errcode = 'restrict_violation';
end
$$;

create trigger entry_append_only before update or delete on payments.entry
    for each row execute function payments.refuse_change();
