-- An article lives in its author's bucket, and everything that hangs on it in the same one.
-- `slug` is unique over all buckets through a reservation; `tags` keeps the author's order for reading.
create table content.article (
    bucket      smallint       not null,
    id          bigint         not null,
    author_id   bigint         not null,
    slug        text           not null,
    title       text           not null,
    description text           not null,
    body        text           not null,
    tags        text[]         not null default '{}',
    favorites   integer        not null default 0,
    created_at  timestamptz(3) not null,
    updated_at  timestamptz(3) not null,
    primary key (bucket, id)
);

-- The newest articles of everybody; of one author; one author does not use a title twice.
create index article_newest on content.article (created_at desc, id desc);
create index article_of_author on content.article (bucket, author_id, created_at desc, id desc);
create unique index article_title on content.article (bucket, author_id, md5(lower(title)));

-- Slugs that an article had before its title changed: they stay reserved, so old links keep working.
create table content.former_slug (
    bucket     smallint       not null,
    article_id bigint         not null,
    slug       text           not null,
    created_at timestamptz(3) not null,
    primary key (bucket, article_id, slug)
);

-- `created_at` is the article's own, copied: it never changes and makes the list of a tag an index walk.
create table content.article_tag (
    bucket     smallint       not null,
    article_id bigint         not null,
    tag        text           not null,
    created_at timestamptz(3) not null,
    primary key (bucket, article_id, tag)
);

create index article_tag_newest on content.article_tag (tag, created_at desc, article_id desc);

-- `article_created_at` is copied for the same reason. The number of rows per article is article.favorites.
create table content.favorite (
    bucket             smallint       not null,
    article_id         bigint         not null,
    user_id            bigint         not null,
    article_created_at timestamptz(3) not null,
    primary key (bucket, article_id, user_id)
);

create index favorite_of_user on content.favorite (user_id, article_created_at desc, article_id desc);

create table content.comment (
    bucket     smallint       not null,
    id         bigint         not null,
    article_id bigint         not null,
    author_id  bigint         not null,
    body       text           not null,
    created_at timestamptz(3) not null,
    updated_at timestamptz(3) not null,
    primary key (bucket, id)
);

create index comment_of_article on content.comment (bucket, article_id, created_at desc, id desc);

-- Counters, kept in the transaction that changes what they count; a row may stand at 0.
create table content.article_count (
    bucket   smallint not null,
    articles bigint   not null,
    primary key (bucket)
);

create table content.author_count (
    bucket    smallint not null,
    author_id bigint   not null,
    articles  bigint   not null,
    primary key (bucket, author_id)
);

create table content.tag_use (
    bucket   smallint not null,
    tag      text     not null,
    articles bigint   not null,
    primary key (bucket, tag)
);

create index tag_use_of_tag on content.tag_use (tag) include (articles);
