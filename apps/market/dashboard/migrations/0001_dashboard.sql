-- Everything about one seller is in the seller's bucket: a sale and what it adds to the counts are one
-- transaction. A seller's currency is that of the first sale, because a shop's never changes.
create table dashboard.seller (
    bucket    smallint not null,
    seller_id bigint   not null,
    currency  text     not null,
    primary key (bucket, seller_id)
);

-- A seller's part of an order. `sold_at` is missing while only its end is known; both moments are when it
-- happened, not when it was heard.
create table dashboard.sale (
    bucket    smallint       not null,
    seller_id bigint         not null,
    order_id  bigint         not null,
    sold_at   timestamptz(3),
    undone_at timestamptz(3),
    primary key (bucket, seller_id, order_id),
    constraint sale_known check (sold_at is not null or undone_at is not null)
);

create index sale_sold on dashboard.sale (bucket, seller_id, sold_at, order_id) where sold_at is not null;
create index sale_undone on dashboard.sale (bucket, seller_id, undone_at, order_id)
    where sold_at is not null and undone_at is not null;

create table dashboard.sale_line (
    bucket     smallint not null,
    seller_id  bigint   not null,
    order_id   bigint   not null,
    listing_id bigint   not null,
    title      text     not null,
    quantity   integer  not null check (quantity > 0),
    price      bigint   not null check (price >= 0),
    primary key (bucket, seller_id, order_id, listing_id)
);

-- Counted as it happens. Amounts are in the seller's currency, in its smallest unit.
create table dashboard.day (
    bucket         smallint not null,
    seller_id      bigint   not null,
    day            date     not null,
    orders         integer  not null,
    items          bigint   not null,
    revenue        bigint   not null,
    refunds        integer  not null,
    refunded_items bigint   not null,
    refunded       bigint   not null,
    primary key (bucket, seller_id, day)
);

create table dashboard.listing_day (
    bucket         smallint not null,
    seller_id      bigint   not null,
    day            date     not null,
    listing_id     bigint   not null,
    items          bigint   not null,
    revenue        bigint   not null,
    refunded_items bigint   not null,
    refunded       bigint   not null,
    primary key (bucket, seller_id, day, listing_id)
);
