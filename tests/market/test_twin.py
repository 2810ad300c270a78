"""The twin that market is measured against answers what market answers, and its orders survive kills.

Both as the benchmark starts them: real processes on one PostgreSQL with the same data, and one provider.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import httpx
import pytest
from bench._closed_loop import Call
from bench._contest import Contest, Side, contest
from tests.servers import LoopThread, PostgresServer

HTTP = httpx.Client(timeout=30, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

BUYERS = 24
STOCK = 6
"""On hand of each listing: fewer than the buyers that want one of it."""


@pytest.fixture(scope="module")
def server(_server_loop: LoopThread) -> Iterator[PostgresServer]:
    """A server of this module's own, for it is killed."""
    server = PostgresServer(_server_loop)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def both(
    _server_loop: LoopThread, server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Contest]:
    made = contest(
        tmp_path_factory.mktemp("twin"),
        server.server,
        users=40,
        listings=60,
        stock=STOCK,
        TWIN_PENDING_AFTER="0.5",
    )
    yield _server_loop.run(made.__aenter__())
    _server_loop.run(made.__aexit__(None, None, None))


def ask(side: Side, call: Call, number: int = 1, **changes: str) -> httpx.Response:
    headers = {name: value.replace("{n}", str(number)) for name, value in call.headers.items()} | changes
    body = None if call.body is None else call.body.replace("{n}", str(number))
    if body is not None:
        headers["Content-Type"] = "application/json"
    return HTTP.request(call.method, side.server.url + call.path, content=body, headers=headers)


def ask_both(both: Contest, endpoint: str, turn: int = 0, number: int = 1) -> tuple[Any, Any]:
    """The decoded answers of market and the twin, whose status is the same."""
    market, twin = (ask(side, side.calls[endpoint][turn], number) for side in both.sides)
    assert (market.status_code, twin.status_code) in ((200, 200), (201, 201)), (market.text, twin.text)
    return market.json(), twin.json()


def plain(value: Any) -> Any:
    """With every moment as a number: the two write the same one with more or fewer zeros."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, str) and value.endswith("Z"):
        with suppress(ValueError):
            return datetime.fromisoformat(value).timestamp()
    return value


def shape(value: Any) -> Any:
    """What kind of value stands where."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(plain(value))


@pytest.mark.parametrize("endpoint", ["article list", "article", "feed"])
def test_articles_are_answered_alike(both: Contest, endpoint: str) -> None:
    """Value by value: every article, the list, and the feed of everybody who has one."""
    found = 0
    for turn in range(len(both.sides[0].calls[endpoint])):
        market, twin = ask_both(both, endpoint, turn)
        assert plain(market) == plain(twin)
        found += len(market.get("articles", [market]))
    assert found > 10


def test_a_page_behind_the_first_is_answered_alike(both: Contest) -> None:
    for query in ("limit=3&offset=5", "offset=1000", "limit=1000"):
        call = Call(f"/api/articles?{query}")
        market, twin = (ask(side, call).json() for side in both.sides)
        assert plain(market) == plain(twin), query


def test_an_article_is_seen_with_the_eyes_of_who_asks(both: Contest) -> None:
    """What the reader likes and follows is said by both, and for some it is true."""
    seen = set()
    for turn, call in enumerate(both.sides[0].calls["feed"][:10]):
        answers = []
        for side in both.sides:
            token = side.calls["feed"][turn].headers["Authorization"]
            found = ask(side, Call("/api/articles?limit=100"), Authorization=token).json()
            answers.append(plain(found))
        assert answers[0] == answers[1], call
        seen |= {(one["favorited"], one["author"]["following"]) for one in answers[0]["articles"]}
    assert {favorited for favorited, _ in seen} == {following for _, following in seen} == {True, False}


def test_a_search_finds_the_same_listings(both: Contest) -> None:
    """The same ones with the same values; in which order equally good ones come is each one's own."""
    found = 0
    for turn in range(len(both.sides[0].calls["listing search"])):
        market, twin = ask_both(both, "listing search", turn)
        ours, theirs = ({one["listing"]["id"]: one for one in page["items"]} for page in (market, twin))
        assert ours.keys() == theirs.keys()
        for id, one in ours.items():
            assert plain(one["listing"]) == plain(theirs[id]["listing"])
            assert shape(one["snippet"][0]) == shape(theirs[id]["snippet"][0])
            assert one.keys() == theirs[id].keys()
        assert market["next"] == twin["next"] or (market["next"] and twin["next"])
        found += len(ours)
    assert found > 20


def test_a_search_goes_on_behind_its_first_page(both: Contest) -> None:
    """Page by page both give every listing once."""
    words = " OR ".join(both.sample.words[:15])
    for side in both.sides:
        ids, after = [], ""
        for _ in range(20):
            call = Call(f"/market/search?kind=listing&limit=3&q={words}{after}".replace(" ", "%20"))
            page = ask(side, call).json()
            ids += [one["listing"]["id"] for one in page["items"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert len(ids) == len(set(ids)) > 6, side.name


def test_registering_is_answered_alike(both: Contest) -> None:
    market, twin = ask_both(both, "register", number=1)
    assert shape(market) == shape(twin)
    names = ("username", "email", "bio", "image")
    assert [market["user"][name] for name in names] == [twin["user"][name] for name in names]
    for side in both.sides:
        again = ask(side, side.calls["register"][0], number=1)
        assert again.status_code == 409
        bad = {"user": {"username": " ", "email": "nobody", "password": ""}}
        refused = ask(side, Call("/api/users", "POST", body=json.dumps(bad)))
        assert refused.status_code == 422
        assert set(refused.json()["errors"]) == {"username", "email", "password"}


@pytest.mark.parametrize(
    ("change", "state", "code"),
    [
        ({}, "confirmed", None),
        ({"source": "card_declined"}, "failed", "declined"),
        ({"quantity": STOCK + 1}, "failed", "out_of_stock"),
        ({"amount": 1}, "failed", "price_changed"),
        ({"listing_id": 5}, "failed", "not_for_sale"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_an_order_is_answered_alike(
    both: Contest, change: dict[str, Any], state: str, code: str | None
) -> None:
    """Confirmed, or failed for the same reason in the same words; asked for again, it is the same one."""
    answers = []
    for side in both.sides:
        call = altered(side.calls["place order"][0], **change)
        number = sum(f"{state}{code}".encode())
        answer, again = ask(side, call, number), ask(side, call, number)
        assert (answer.status_code, again.status_code) == (201, 201), (side.name, answer.text, again.text)
        placed = answer.json()
        assert placed == again.json()
        assert placed["state"] == state
        assert answer.headers["location"] == f"/market/orders/{placed['id']}"
        other = altered(call, source="card_other")
        assert ask(side, other, number).status_code == 422, "the key is of another request"
        answers.append(placed)
    assert shape(answers[0]) == shape(answers[1])
    assert answers[0]["reason"] == answers[1]["reason"]
    assert code is None or answers[0]["reason"]["code"] == code


def altered(call: Call, **change: Any) -> Call:
    """The order with another source, or with another listing, quantity or price in its first line."""
    body = json.loads(call.body or "")
    body["source"] = change.get("source", body["source"])
    line = body["lines"][0]
    line["listing_id"] = change.get("listing_id", line["listing_id"])
    line["quantity"] = change.get("quantity", line["quantity"])
    line["price"]["amount"] = change.get("amount", line["price"]["amount"])
    return Call(call.path, call.method, call.headers, json.dumps(body))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Token nonsense"}, 401),
        ({"Idempotency-Key": "a"}, None),
    ],
)
def test_an_order_is_refused_alike(both: Contest, headers: dict[str, str], status: int | None) -> None:
    statuses = {ask(side, side.calls["place order"][0], 7, **headers).status_code for side in both.sides}
    assert statuses == {status} if status is not None else statuses <= {400, 422}


class Victims:
    """What is killed in the middle of the twin's orders."""

    def __init__(self, both: Contest, server: PostgresServer) -> None:
        self.twin = both.sides[1].server
        self.provider = both.provider
        self.server = server

    def app(self) -> None:
        self.twin.kill()
        self.twin.start()

    def payment_provider(self) -> None:
        self.provider.stop()
        self.provider.start()

    def database(self) -> None:
        self.server.kill()
        self.server.restart()


def test_the_twins_orders_survive_kills(both: Contest, server: PostgresServer) -> None:
    """Its app, the provider and the database are killed in the middle of orders, again and again.

    Nothing is charged twice, nothing sold that is not there, no order lost; who asks again gets the one.
    """
    victims, twin = Victims(both, server), both.sides[1]
    kills: list[Callable[[], None]] = [victims.app, victims.payment_provider, victims.app, victims.database]
    placed = [(number, twin.calls["place order"][number % 12]) for number in range(1000, 1000 + 8 * BUYERS)]
    answered: dict[int, int] = {}
    some = threading.Event()

    def buy(number: int, call: Call) -> None:
        with suppress(httpx.HTTPError):  # killed under way
            answer = ask(twin, call, number)
            if answer.status_code == 201:
                answered[number] = answer.json()["id"]
        if number % 20 == 0:
            some.set()

    with ThreadPoolExecutor(BUYERS) as buyers:
        waiting = [buyers.submit(buy, number, call) for number, call in placed]
        for kill in kills:
            some.wait(30)
            some.clear()
            kill()
        for one in waiting:
            one.result()
    assert answered
    for number, call in placed:  # whoever got no answer asks again
        known = ask(twin, call, number).json()
        assert known["id"] == answered.setdefault(number, known["id"])
    assert len(set(answered.values())) == len(placed)
    no_order_is_open(server)
    what_is_sold_is_paid(both, server)


def no_order_is_open(server: PostgresServer) -> None:
    limit = time.monotonic() + 60
    while (
        server.query(
            "select count(*) from orders where state in ('placing', 'awaiting_payment')", dbname="twin"
        )
        != "0"
    ):
        assert time.monotonic() < limit, "an order stays open"
        time.sleep(0.1)


def what_is_sold_is_paid(both: Contest, server: PostgresServer) -> None:
    def rows(sql: str) -> list[list[str]]:
        return [line.split("|") for line in server.query(sql, dbname="twin").splitlines()]

    journal = HTTP.get(f"{both.provider.url}/journal").json()
    charges = [
        (one["key"], one["amount"])
        for one in journal["charges"]
        if one["key"].startswith("twin-") and one["status"] == "succeeded"
    ]
    confirmed = rows("select id, amount from orders where state = 'confirmed'")
    assert sorted(charges) == sorted((f"twin-{id}-1", int(amount)) for id, amount in confirmed)
    assert confirmed
    wrong = """
        select count(*) from stocks s where reserved <> 0 or on_hand < 0
        or on_hand <> (select sum(change) from movements m where m.listing_id = s.listing_id)
        or on_hand <> (
            select sum(change) from movements m where m.listing_id = s.listing_id and order_id is null) - (
            select coalesce(sum(l.quantity), 0) from order_lines l join orders o on o.id = l.order_id
            where l.listing_id = s.listing_id and o.state = 'confirmed')
    """
    assert rows(wrong) == [["0"]]
    assert rows("select count(*) from stocks where on_hand = 0") != [["0"]], "nothing was sold out"
    unbalanced = "select count(*) from (select order_id from entries group by 1 having sum(amount) <> 0) x"
    assert rows(unbalanced) == [["0"]]
    half_booked = """
        select count(*) from orders o where state = 'confirmed'
        and 2 <> (select count(*) from entries e where e.order_id = o.id)
    """
    assert rows(half_booked) == [["0"]]
