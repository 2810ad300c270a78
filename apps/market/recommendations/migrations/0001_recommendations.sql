-- An order, in its own bucket: it decides whether the order counts. One that is undone never counts again,
-- also when that was heard first; then nobody knows its listings.
create table recommendations.basket (
    bucket    smallint       not null,
    order_id  bigint         not null,
    buyer_id  bigint,
    listings  bigint[]       not null,
    undone    boolean        not null,
    bought_at timestamptz(3) not null,
    primary key (bucket, order_id)
);

create index basket_old on recommendations.basket (bought_at);

-- One listing of an order with the others that were in it, in the listing's bucket. `undone` is final: a late
-- repetition of the purchase finds the row and counts nothing.
create table recommendations.purchase (
    bucket     smallint         not null,
    listing_id bigint           not null,
    buyer_id   bigint           not null,
    order_id   bigint           not null,
    others     bigint[]         not null,
    weight     double precision not null,
    undone     boolean          not null,
    bought_at  timestamptz(3)   not null,
    primary key (bucket, listing_id, buyer_id, order_id)
);

create index purchase_old on recommendations.purchase (bought_at);

-- How many bought the listing, and the sum of their weights. Its row is locked by whoever counts;
-- `version` grows with every change of what is counted.
create table recommendations.listing (
    bucket     smallint         not null,
    listing_id bigint           not null,
    buyers     integer          not null default 0 check (buyers >= 0),
    weight     double precision not null default 0,
    version    bigint           not null default 0,
    primary key (bucket, listing_id)
);

-- How many bought both, seen from `listing_id`.
create table recommendations.pair (
    bucket     smallint         not null,
    listing_id bigint           not null,
    other_id   bigint           not null,
    buyers     integer          not null check (buyers >= 0),
    weight     double precision not null,
    primary key (bucket, listing_id, other_id)
);

-- What is bought together by chance alone is most of the pairs, and not in here.
create index pair_best on recommendations.pair (bucket, listing_id, weight desc) where buyers >= 2;

-- The answers, the best first; made from version `version` of the listing's counts.
create table recommendations.also_bought (
    bucket     smallint         not null,
    listing_id bigint           not null,
    others     bigint[]         not null,
    scores     double precision[] not null,
    version    bigint           not null,
    made_at    timestamptz(3)   not null,
    primary key (bucket, listing_id)
);

create index also_bought_old on recommendations.also_bought (made_at);

-- Who follows whom, in the bucket of the follower. Rows stay when somebody follows no more: their version
-- keeps older news out.
create table recommendations.follow (
    bucket      smallint       not null,
    follower_id bigint         not null,
    followee_id bigint         not null,
    following   boolean        not null,
    version     bigint         not null,
    changed_at  timestamptz(3) not null,
    primary key (bucket, follower_id, followee_id)
);

create index follow_newest on recommendations.follow (bucket, follower_id, changed_at desc, followee_id desc)
    where following;

-- The same in the bucket of the followee, where the followers are counted.
create table recommendations.fan (
    bucket      smallint not null,
    followee_id bigint   not null,
    follower_id bigint   not null,
    following   boolean  not null,
    version     bigint   not null,
    primary key (bucket, followee_id, follower_id)
);

create table recommendations.popularity (
    bucket    smallint not null,
    person_id bigint   not null,
    followers integer  not null check (followers >= 0),
    primary key (bucket, person_id)
);

create index popularity_most on recommendations.popularity (followers desc, person_id desc)
    where followers > 0;

-- Authors for one person. `changes` counts the news about whom they follow, `version` is the count that
-- `authors` was made from.
create table recommendations.suggestion (
    bucket    smallint       not null,
    person_id bigint         not null,
    changes   bigint         not null,
    version   bigint         not null default 0,
    authors   bigint[]       not null default '{}',
    made_at   timestamptz(3) not null,
    primary key (bucket, person_id)
);

create index suggestion_old on recommendations.suggestion (made_at);

-- The most followed of all; one row.
create table recommendations.chart (
    bucket  smallint       not null,
    name    text           not null,
    people  bigint[]       not null,
    made_at timestamptz(3) not null,
    primary key (bucket, name)
);
