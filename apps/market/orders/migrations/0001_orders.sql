-- A cart is in its buyer's bucket. `version` only grows and the row stays, so that a version names one content.
create table orders.cart (
    bucket     smallint       not null,
    buyer_id   bigint         not null,
    version    integer        not null,
    lines      jsonb          not null,
    updated_at timestamptz(3) not null,
    primary key (bucket, buyer_id)
);

-- An order is in its buyer's bucket; its row is the one place where it is decided what becomes of it.
-- `step`: on the way forward how many steps are done, when `cancelling` how many are still to be undone.
-- `due_at`: when a worker looks at it, null when there is nothing left to do or to tell.
create table orders.placed (
    bucket       smallint       not null,
    id           bigint         not null,
    buyer_id     bigint         not null,
    state        text           not null
        check (state in ('placing', 'awaiting_payment', 'confirmed', 'cancelling', 'cancelled', 'failed')),
    step         smallint       not null default 0,
    reason       jsonb,
    lines        jsonb          not null,
    amount       bigint         not null check (amount > 0),
    currency     text           not null,
    source       text           not null,
    address      jsonb          not null,
    cart_version integer,
    version      integer        not null default 1,
    tries        integer        not null default 0,
    pay_by       timestamptz(3) not null,
    due_at       timestamptz(3),
    confirmed_at timestamptz(3),
    created_at   timestamptz(3) not null,
    updated_at   timestamptz(3) not null,
    primary key (bucket, id)
);

create index placed_of_buyer on orders.placed (bucket, buyer_id, created_at desc, id desc);
create index placed_due on orders.placed (due_at, id) where due_at is not null;

-- One version of a cart makes one order.
create unique index placed_of_cart on orders.placed (bucket, buyer_id, cart_version)
    where cart_version is not null;

-- A seller's part of an order, in the seller's bucket: a copy, so that a list of sales reads one bucket.
-- `version` is the order's: an older copy never replaces a newer one.
create table orders.sale (
    bucket     smallint       not null,
    seller_id  bigint         not null,
    order_id   bigint         not null,
    state      text           not null check (state in ('open', 'shipped', 'cancelled')),
    lines      jsonb          not null,
    sold_at    timestamptz(3) not null,
    shipped_at timestamptz(3),
    version    integer        not null,
    primary key (bucket, seller_id, order_id)
);

create index sale_newest on orders.sale (bucket, seller_id, sold_at desc, order_id desc);
