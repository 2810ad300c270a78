-- Counts what the author changes, not favourites, so that copies of it elsewhere can tell which one is newer.
alter table content.article add column version integer not null default 1;
