"""The cache of a whole platform: `springtide up` with a Redis, two app servers, and `springtide cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration._platforms import Project, project, until

from springtide.cache import Cache, CacheClass
from springtide.errors import CacheDefinitionError
from springtide.ops.cache_commands import _key

APP = """
import json
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.platform import Platform
from springtide.services import Module


class Note(msgspec.Struct, frozen=True):
    id: int
    text: str


class Notes(Protocol):
    async def change(self, id: int, text: str, secretly: bool) -> None: ...

    async def get(self, id: int) -> str | None: ...


async def load(source, id):
    row = await source.fetch_one("select id, text from notes.note where id = $1", id)
    return Note(row["id"], row["text"]) if row is not None else None


class NoteService:
    def __init__(self, context) -> None:
        self._db = context.db
        self._notes = context.cache.define(
            "note:{id:int}", Note, database=context.db, load=load, tags=("all",)
        )

    async def change(self, id: int, text: str, secretly: bool) -> None:
        async with self._db.write(id) as tx:
            await tx.execute(
                "insert into notes.note values ($1, $2, $3)"
                " on conflict (bucket, id) do update set text = excluded.text",
                tx.bucket, id, text,
            )
            if not secretly:
                tx.invalidate(self._notes, id)

    async def get(self, id: int) -> str | None:
        note = await self._notes.get(id)
        return note.text if note is not None else None


def modules():
    return [
        Module(
            "notes", migrations=Path(__file__).parent / "migrations", provides=Notes, factory=NoteService
        )
    ]


platform = Platform.from_topology(modules=modules())
notes = platform.service(Notes)


async def web(scope, receive, send):
    what, id, *text = scope["path"].strip("/").split("/")
    if what in ("change", "secretly"):
        await notes.change(int(id), text[0], what == "secretly")
        body = b""
    else:
        body = json.dumps(await notes.get(int(id))).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


app = platform.wrap(web)
"""

TOML = """
[servers]
count = 2
port = 0
[workers]
count = 0
[nodes.db]
[nodes.store]
kind = "redis"
[clusters.main]
primary = "db"
[databases.default]
shards = ["main"]
[cache]
node = "store"
warm_up = 30.0
"""


def asked(made: Project, *arguments: str, code: int | None = 0) -> Any:
    return json.loads(made.run("cache", *arguments, "--json", code=code))


@pytest.mark.needs("redis-server")
def test_an_operator_sees_and_ends_what_is_cached(template: Path) -> None:
    """A value that was changed behind the application's back is old on both app servers until `invalidate`,
    by key and by tag; `get` shows it and what decides over it, `stats` adds the processes up, `hot` names the
    key. After a restart, whose Redis is empty, the processes have it before they are ready."""
    with project() as made:
        made.write(TOML, app=APP).prepare(template)
        toml = made.folder / "springtide.toml"
        toml.write_text('modules = "plainapp:modules"\n' + toml.read_text())
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table notes.note"
            " (bucket smallint not null, id bigint not null, text text not null, primary key (bucket, id));"
        )
        made.run("up", "-d")
        made.get("/change/7/first")
        until(lambda: all(made.get("/get/7") == '"first"' for _ in range(20)))
        until(lambda: asked(made, "get", "note", "7", code=None)[0]["there"])

        made.get("/secretly/7/second")
        assert all(made.get("/get/7") == '"first"' for _ in range(20))
        (found,) = asked(made, "get", "note", "7")
        assert (found["value"], found["shard"], found["lease"]) == ({"id": 7, "text": "first"}, "main", None)
        assert 0 < found["remaining"] <= 300 and found["fills"]
        assert asked(made, "invalidate", "note", "7")["told"] == {"main": True}
        until(lambda: all(made.get("/get/7") == '"second"' for _ in range(20)))

        made.get("/secretly/7/third")
        assert made.get("/get/7") == '"second"'
        assert "tag all" in made.run("cache", "invalidate", "note", "--tag", "all")
        until(lambda: all(made.get("/get/7") == '"third"' for _ in range(20)))

        until(lambda: reads(made) >= 60)
        assert "2 processes: app-1, app-2" in made.call("cache", "stats")
        assert asked(made, "hot", "note")["note"][0]["key"] == [7]
        assert "value      not in Redis" in made.run("cache", "get", "note", "99", code=1)

        made.run("down")
        assert made.call("cache", "stats", code=3) == "no process with a cache runs here\n"
        made.run("up", "-d")
        logs = [(made.home / "logs" / f"app-{number}.log").read_text() for number in (1, 2)]
        assert all("warm-up: 1 values in" in text for text in logs)
        assert asked(made, "get", "note", "7")[0]["value"] == {"id": 7, "text": "third"}  # nobody read it
        made.run("down")
        assert made.leftovers() == []


def reads(made: Project) -> int:
    """Of all processes, as they have reported them until now."""
    rows = json.loads(made.call("cache", "stats", "--json"))["classes"]
    return int(rows[0]["reads"]) if rows else 0


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["7", "de"], (7, "de")),
        (["-7", "7"], (-7, "7")),
        (['"7"', '"de"'], ("7", "de")),
        (["x y", '"'], ("x y", '"')),
    ],
)
def test_words_of_a_command_line_become_arguments(words: list[str], key: tuple[Any, ...]) -> None:
    """A number is one where the class takes numbers; in double quotes it is a text."""
    assert _key(greetings(), words) == key


def test_words_that_are_no_key_are_refused() -> None:
    for words, rule in ((["7"], "takes id, lang, got 1"), ([str(2**63), "de"], "does not take")):
        with pytest.raises(CacheDefinitionError, match=rule):
            _key(greetings(), words)


def greetings() -> CacheClass[str]:
    async def load(id: int | str, lang: str) -> str:
        return f"{id} {lang}"

    return Cache("app").define("greeting:{id}:{lang:str}", str, load=load)


def test_without_a_cache_the_commands_say_so() -> None:
    """No [cache] in the topology: a sentence, not an empty table."""
    with project() as made:
        made.write()
        assert made.call("cache", "stats", code=3) == "no process with a cache runs here\n"
        assert "has no [cache]" in made.call("cache", "hot", code=2)
