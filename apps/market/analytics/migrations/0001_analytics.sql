-- What happened on a day of UTC: how many orders were placed, confirmed, cancelled, or failed for which reason.
-- In the bucket that the events were counted in; a day is the sum over all of them.
create table analytics.day (
    bucket smallint not null,
    day    date     not null,
    what   text     not null,
    orders bigint   not null,
    primary key (bucket, day, what)
);

create index day_of_all on analytics.day (day);
