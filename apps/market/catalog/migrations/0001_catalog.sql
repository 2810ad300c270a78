-- A shop is in its owner's bucket and has the owner's id: so an account has one at most. Its slug is unique
-- over all buckets through a reservation.
create table catalog.shop (
    bucket      smallint       not null,
    seller_id   bigint         not null,
    slug        text           not null,
    name        text           not null,
    description text           not null,
    currency    text           not null,
    version     integer        not null default 1,
    created_at  timestamptz(3) not null,
    updated_at  timestamptz(3) not null,
    primary key (bucket, seller_id)
);

-- A listing is in its seller's bucket. `listed_at` is when it first went on sale (its creation until then): it
-- orders the lists, which only show what has been on sale, so it does not change under a reader.
-- `department` is the category's root, copied, so that the list of a department is one index walk.
create table catalog.listing (
    bucket      smallint       not null,
    id          bigint         not null,
    seller_id   bigint         not null,
    title       text           not null,
    description text           not null,
    amount      bigint         not null check (amount > 0),
    currency    text           not null,
    category    text           not null,
    department  text           not null,
    status      text           not null check (status in ('draft', 'active', 'sold_out', 'withdrawn')),
    media       text[]         not null default '{}',
    version     integer        not null default 1,
    listed_at   timestamptz(3) not null,
    created_at  timestamptz(3) not null,
    updated_at  timestamptz(3) not null,
    primary key (bucket, id)
);

create index listing_newest on catalog.listing (listed_at desc, id desc) where status = 'active';
create index listing_of_category on catalog.listing (category, listed_at desc, id desc)
    where status = 'active';
create index listing_of_department on catalog.listing (department, listed_at desc, id desc)
    where status = 'active';
create index listing_on_sale_of_seller on catalog.listing (bucket, seller_id, listed_at desc, id desc)
    where status = 'active';
create index listing_of_seller on catalog.listing (bucket, seller_id, created_at desc, id desc);

-- What there is and how much of it is promised; apart from the listing, because every sale rewrites this row.
-- `movements` numbers the log: `on_hand` is always the sum of the listing's movements.
create table catalog.stock (
    bucket     smallint not null,
    listing_id bigint   not null,
    on_hand    integer  not null,
    reserved   integer  not null default 0,
    movements  integer  not null default 0,
    primary key (bucket, listing_id),
    constraint stock_not_oversold check (reserved >= 0 and on_hand >= reserved)
) with (fillfactor = 70);

create table catalog.movement (
    bucket     smallint       not null,
    listing_id bigint         not null,
    number     integer        not null,
    kind       text           not null check (kind in ('adjustment', 'sale', 'return')),
    change     integer        not null check (change <> 0),
    on_hand    integer        not null,
    order_id   bigint,
    note       text           not null,
    created_at timestamptz(3) not null,
    primary key (bucket, listing_id, number)
);

-- What became of an order's reservation, in the bucket of the order: the one place where it is decided.
create table catalog.reservation (
    bucket     smallint       not null,
    order_id   bigint         not null,
    state      text           not null
        check (state in ('reserving', 'reserved', 'refused', 'committed', 'released', 'returned')),
    lines      jsonb          not null,
    refusal    jsonb,
    settled    boolean        not null default false,
    expires_at timestamptz(3) not null,
    created_at timestamptz(3) not null,
    updated_at timestamptz(3) not null,
    primary key (bucket, order_id)
);

-- Decided, and not known yet to have reached every listing: what a crash may leave.
create index reservation_unsettled on catalog.reservation (updated_at, order_id)
    where not settled and state not in ('reserving', 'reserved');

-- The part of a reservation that concerns one listing, in the listing's bucket; the price is the snapshot.
create table catalog.held (
    bucket     smallint       not null,
    order_id   bigint         not null,
    listing_id bigint         not null,
    seller_id  bigint         not null,
    title      text           not null,
    quantity   integer        not null check (quantity > 0),
    amount     bigint         not null,
    currency   text           not null,
    state      text           not null check (state in ('held', 'committed', 'released', 'returned')),
    expires_at timestamptz(3) not null,
    primary key (bucket, order_id, listing_id)
);

create index held_due on catalog.held (expires_at, order_id) where state = 'held';

-- How many listings are on sale, kept in the transaction that changes it; a row may stand at 0.
create table catalog.category_count (
    bucket   smallint not null,
    category text     not null,
    listings bigint   not null,
    primary key (bucket, category)
);
