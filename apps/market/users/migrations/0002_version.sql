-- Counts what the person changes, so that copies of it elsewhere can tell which one is newer.
alter table users.account add column version integer not null default 1;
