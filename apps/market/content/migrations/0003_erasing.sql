-- Articles that are gone while a job still deletes their comments and favourites. So a person's favourites are
-- counted by their index alone, less those of these few articles.
create table content.erasing (
    bucket     smallint not null,
    article_id bigint   not null,
    primary key (bucket, article_id)
);
