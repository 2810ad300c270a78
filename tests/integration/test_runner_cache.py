"""The cache of a whole platform: `springtide up` with a Redis, two app servers, and `springtide cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration._platforms import Project, project, until

from springtide.cache import Cache, CacheClass
from springtide.cache._report import ClassReport, Report, read_reports, write_report
from springtide.errors import CacheDefinitionError
from springtide.ops._cache_looking import _writers
from springtide.ops.cache_commands import _key, _named
from springtide.ops.cli import main

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
        assert "value      not in Redis" in made.run("cache", "get", "note", "99", code=3)

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
    rows = json.loads(made.run("cache", "stats", "--json", code=None))["classes"]  # 3: none has yet
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
    for words, rule in (
        (["7"], "the key of greeting:{id}:{lang:str} is ID LANG, got 7"),
        ([], "is ID LANG, got nothing"),
        ([str(2**63), "de"], "has no such key, got 9223372036854775808 de"),
    ):
        with pytest.raises(CacheDefinitionError, match=rule):
            _key(greetings(), words)


def greetings() -> CacheClass[str]:
    async def load(id: int | str, lang: str) -> str:
        return f"{id} {lang}"

    return Cache("app").define("greeting:{id}:{lang:str}", str, load=load)


def test_a_class_without_tags_has_none_to_invalidate() -> None:
    """A sentence before anything is asked or written."""
    with pytest.raises(CacheDefinitionError, match="greeting is defined without tags, got --tag all"):
        _named(greetings(), [], ["all"])
    assert _named(greetings(), ["7", "de"], []) == (7, "de")


def test_counts_are_whole_numbers(tmp_path: Path) -> None:
    """Whoever adds up what processes wrote down shows 3 reads, and not 3.0."""
    counts = {"l1_hits": 3, "load_seconds": 0.5}
    one = ClassReport(counts=counts, hot=[((7,), 1.5)])
    write_report(tmp_path / "cache", Report(node="app-1", pid=1, since=0, written=0, classes={"note": one}))
    (found,) = read_reports(tmp_path / "cache")
    assert repr(found.classes["note"].counts) == repr(counts)


@pytest.mark.parametrize(
    ("tombstones", "said"),
    [
        (["764"], "transaction 764"),
        (["764,770", "770"], "transactions 764, 770"),
        (["764", "<760@31"], "transactions 764, those up to 760"),
    ],
)
def test_who_has_invalidated_a_key_is_named(tombstones: list[str], said: str) -> None:
    """As tombstones have it: each by its number, or all up to one."""
    assert _writers(tombstones) == said


def test_without_a_cache_the_commands_say_so() -> None:
    """No [cache] in the topology, or no topology: a sentence, not an empty table."""
    with project() as made:
        made.write()
        commands = (["stats"], ["hot"], ["get", "note", "7"], ["invalidate", "note", "7"])
        for words in commands:
            assert "has no [cache]" in made.call("cache", *words, code=2)
        (made.folder / "springtide.toml").unlink()
        for words in commands:
            assert "there is no file" in made.call("cache", *words, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hot", "-n", "x"], "argument -n: must be a whole number >= 1, got 'x'"),
        (["hot", "-n", "0"], "argument -n: must be a whole number >= 1, got '0'"),
        (["invalidate", "note", "--tag", ""], "argument --tag: must be the name of a tag, got ''"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, with what was given."""
    with pytest.raises(SystemExit) as ended:
        main(["cache", *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err
