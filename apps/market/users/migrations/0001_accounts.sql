-- One person. `id` carries the bucket (id & 1023), so an account is found by its id alone.
-- username and email are unique over all buckets through reservations of their case-folded form.
create table users.account (
    bucket        smallint       not null,
    id            bigint         not null,
    username      text           not null,
    email         text           not null,
    password_hash text           not null,
    bio           text,
    image         text,
    created_at    timestamptz(3) not null,
    updated_at    timestamptz(3) not null,
    primary key (bucket, id)
);

-- Who follows whom, in the bucket of the follower: the question asked is always "whom do I follow?".
create table users.follow (
    bucket      smallint       not null,
    follower_id bigint         not null,
    followee_id bigint         not null,
    created_at  timestamptz(3) not null,
    primary key (bucket, follower_id, followee_id)
);
