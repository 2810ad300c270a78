-- How often the stock made the listing sold out or brought it back: the number of what its seller is told.
alter table catalog.listing add column turns integer not null default 0;
