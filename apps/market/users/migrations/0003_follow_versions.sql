-- Who follows no more keeps the row: `version` counts the changes of a pair, so that those who are told of them
-- in any order know which is the last.
alter table users.follow add column following boolean not null default true;
alter table users.follow add column version bigint not null default 1;
