-- What becomes of an order is decided by its workflow, `flow`; `state` says what it has come to.
-- Orders of the release before have none: those that are under way end with that release, before this one.
do $$
begin
    if exists (select from orders.placed where state not in ('confirmed', 'cancelled', 'failed')) then
        raise exception 'orders are under way: let the release before this one end them first';
    end if;
end
$$;

drop index orders.placed_due;

alter table orders.placed
    add column flow uuid,
    drop column step,
    drop column tries,
    drop column due_at;
