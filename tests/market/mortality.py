"""market as `springtide up` runs it, with replicas, under `springtide load`; database processes are killed.

`Market.processes()` lists every process of every database node by what it does; `kill` ends one, and `well`
waits until all that was there is there again. `Witness` is a client that writes comments, reads them again
and keeps what it was told. `mortal_run` does it all and holds it against the promises of docs/replicas.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from tests.integration._platforms import Project, project, until

from springtide.topology import read_addresses

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
SETTLE = 2.0


@dataclass(frozen=True)
class Mortal:
    """One process of a database node; `does` is "postmaster", "walwriter", "backend", ..., "pgbouncer"."""

    node: str
    does: str
    pid: int

    def __str__(self) -> str:
        return f"{self.does} of {self.node}"


KINDS = (
    "checkpointer", "background writer", "walwriter", "walsender", "walreceiver", "startup", "archiver",
    "autovacuum launcher", "logical replication launcher", "io worker",
)  # fmt: skip


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _does(title: str) -> str | None:
    """What a child of a postmaster is for; None for those that come and go by themselves."""
    if not title.startswith("postgres: "):
        return None
    rest = title.removeprefix("postgres: ")
    for kind in KINDS:
        if rest.startswith(kind):
            return kind
    if "autovacuum worker" in rest or "parallel worker" in rest or "springtide-runner" in rest:
        return None
    return "backend" if re.search(r"127\.0\.0\.1\(\d+\)|\[local\]", rest) else None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


class Market:
    def __init__(self, made: Project, replicas: int) -> None:
        self.replicas = replicas
        self.project = made
        self._load: subprocess.Popen[bytes] | None = None
        self._report = made.folder / "load.json"

    @property
    def url(self) -> str:
        url: str = self.project.status()["url"]
        return url

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["node"]: node for node in self.project.status()["nodes"]}

    @property
    def primary(self) -> str:
        return read_addresses(self.project.home / "run" / "addresses.json").clusters["main"].primary

    def processes(self) -> list[Mortal]:
        """Every database process, one of each kind per node."""
        found: dict[tuple[str, str], Mortal] = {}
        for name, node in self.nodes().items():
            pid = node["pid"]
            if node["kind"] == "pgbouncer" and pid is not None:
                found[name, "pgbouncer"] = Mortal(name, "pgbouncer", pid)
            if node["kind"] != "postgres" or pid is None:
                continue
            found[name, "postmaster"] = Mortal(name, "postmaster", pid)
            for child in _children(pid):
                does = _does(_title(child))
                if does is not None:
                    found.setdefault((name, does), Mortal(name, does, child))
        return list(found.values())

    def kill(self, one: Mortal) -> None:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)

    def streaming(self) -> int:
        """How many replicas stream, as the primary says."""
        said = self.query("select count(*) from pg_stat_replication where state = 'streaming'")
        return int(said or 0)

    def query(self, sql: str) -> str:
        """On the primary; "" while there is none that answers."""

        async def ask(url: str) -> str:
            connection = await asyncpg.connect(url, timeout=2, ssl=False)
            try:
                return str(await connection.fetchval(sql, timeout=5))
            finally:
                connection.terminate()

        found = read_addresses(self.project.home / "run" / "addresses.json")
        try:
            return asyncio.run(ask(found.nodes[found.clusters["main"].primary]))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, KeyError):
            return ""

    def well(self, before: list[Mortal], killed: Mortal) -> float:
        """Wait until all kinds of processes that were there are there again, and every replica streams."""
        begun = time.monotonic()
        replicas = self.replicas
        while True:
            now = {(one.does if one.does != "backend" else "", one.pid) for one in self.processes()}
            kinds = Counter(does for does, _ in now)
            wanted = Counter(one.does if one.does != "backend" else "" for one in before)
            missing = wanted - kinds
            for late in ("", "archiver"):  # backends come and go; an archiver is started every 10 s at most
                missing.pop(late, None)
            if not missing and killed.pid not in {pid for _, pid in now} and self.streaming() == replicas:
                return time.monotonic() - begun
            assert time.monotonic() - begun < PATIENCE, f"{killed} was killed: {missing} did not come back"
            time.sleep(0.2)

    @contextmanager
    def load(self, *, rate: float) -> Iterator[None]:
        """`springtide load` during the block."""
        log = self.project.folder / "load.log"
        self._report.unlink(missing_ok=True)
        with log.open("wb") as out:
            running = subprocess.Popen(
                self.project.command(
                    "load", "--rate", str(rate), "--duration", "3600", "--phases", "steady",
                    "--timeout", "40", "--json", str(self._report),
                ),
                cwd=self.project.folder, env=self.project.env, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            until(lambda: b" ok/s" in log.read_bytes() or running.poll() is not None, seconds=PATIENCE)
            yield
            time.sleep(SETTLE)  # what the last death did to requests that are still under way
            assert running.poll() is None, log.read_text()[-3000:]
        finally:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._report.read_text())
        return found


def topology(*, stage: int, replicas: tuple[str, ...]) -> str:
    """market's own file, at another stage, with replicas and free ports."""
    text = (ROOT / "springtide.toml").read_text()
    off = "backups = false\nnetwork = false\n" if stage > 1 else ""  # have tests of their own, and cost time
    text = text.replace("stage = 1\n", f"stage = {stage}\n{off}").replace(
        'path = "apps"', f'path = "{ROOT / "apps"}"'
    )
    text = text.replace("port = 8000", "port = 0")
    nodes = "".join(f'[nodes.{name}]\nkind = "postgres"\n' for name in replicas)
    clusters = f"[clusters.main]\nreplicas = {json.dumps(replicas)}\n" if replicas else ""
    return text + nodes + clusters


@contextmanager
def market(*, stage: int = 2, replicas: tuple[str, ...]) -> Iterator[Market]:
    with project() as made:
        (made.folder / "springtide.toml").write_text(topology(stage=stage, replicas=replicas))
        made.run("up", "--detach")
        made.run("seed", "--users", "50")
        yield Market(made, len(replicas))


@dataclass
class Witness:
    """Writes comments below an article of its own and reads them again; what it was told is kept.

    `keeps` says whether it returns cookies, as browsers do, or nothing but its access token.
    """

    http: httpx.AsyncClient
    name: str
    keeps: bool
    acknowledged: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    failed_reads: list[str] = field(default_factory=list)
    failed_writes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _slug: str = ""
    _token: str = ""

    async def prepare(self) -> None:
        account = {"username": self.name, "email": f"{self.name}@example.com", "password": "springtide"}
        answer = await self.http.post("/api/users", json={"user": account})
        answer.raise_for_status()
        self._token = answer.json()["user"]["token"]
        article = {"title": f"of {self.name}", "description": "d", "body": "b"}
        answer = await self._send("POST", "/api/articles", {"article": article})
        answer.raise_for_status()
        self._slug = answer.json()["article"]["slug"]

    async def live(self, ended: asyncio.Event) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            await self.write(f"{self.name} says {number}")
            for _ in range(2):
                await self.read()
            await asyncio.sleep(0.02)

    async def write(self, text: str) -> None:
        self.tried.append(text)
        try:
            answer = await self._send(
                "POST", f"/api/articles/{self._slug}/comments", {"comment": {"body": text}}
            )
        except httpx.HTTPError as error:
            self.failed_writes.append(repr(error))
            return
        if answer.status_code >= 400:
            self.failed_writes.append(f"status {answer.status_code}: {answer.text[:200]}")
        else:
            self.acknowledged.append(text)

    async def read(self) -> None:
        known = [*self.acknowledged]
        try:
            answer = await self._send("GET", f"/api/articles/{self._slug}/comments")
        except httpx.HTTPError as error:
            self.failed_reads.append(repr(error))
            return
        if answer.status_code != 200:
            self.failed_reads.append(f"status {answer.status_code}: {answer.text[:200]}")
            return
        bodies = [comment["body"] for comment in answer.json()["comments"]]
        found = [body for body in bodies if body.startswith(self.name)]  # the load comments as well
        there = set(found)
        if missing := set(known) - there:
            self.wrong.append(f"{self.name} does not see its own {sorted(missing)}")
        if gone := self.seen - there:
            self.wrong.append(f"{self.name} has seen {sorted(gone)}, and they are gone")
        if len(found) != len(there):
            self.wrong.append(f"{self.name} sees a comment twice")
        if strangers := there - set(self.tried):
            self.wrong.append(f"{self.name} sees what nobody wrote: {sorted(strangers)}")
        self.seen |= there

    async def _send(self, method: str, path: str, body: object = None) -> httpx.Response:
        if not self.keeps:
            self.http.cookies.clear()
        headers = {"Authorization": f"Token {self._token}"} if self._token else {}
        return await self.http.request(method, path, json=body, headers=headers)


@contextmanager
def witnesses(world: Market) -> Iterator[list[Witness]]:
    """Two clients in a thread of their own, one with cookies and one without, until the block ends."""
    url = world.url
    made: list[Witness] = []
    failure: list[BaseException] = []
    ready, ended = threading.Event(), threading.Event()

    async def watch() -> None:
        async with (
            httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as one,
            httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as other,
        ):
            made.extend([Witness(one, "browser", keeps=True), Witness(other, "bearer", keeps=False)])
            for witness in made:
                await witness.prepare()
            ready.set()
            over = asyncio.Event()
            lives = [asyncio.create_task(witness.live(over)) for witness in made]
            await asyncio.to_thread(ended.wait)
            over.set()
            await asyncio.gather(*lives)
            for witness in made:
                await witness.read()

    def body() -> None:
        try:
            asyncio.run(watch())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        ready.wait()
        yield made
    finally:
        ended.set()
        thread.join()
        if failure:
            raise failure[0]


GROUPS = ("replicas", "pooler", "primary")


def mortal_run(
    world: Market, *, rate: float, groups: Sequence[str] = GROUPS, only: tuple[str, ...] | None = None
) -> None:
    """Kill the replicas' processes, the pooler, the primary's; judge each group by what is promised."""
    with witnesses(world) as seen:
        for group in groups:
            marks = [(len(witness.failed_reads), len(witness.failed_writes)) for witness in seen]
            chosen = [
                one
                for one in world.processes()
                if _group(world, one) == group and (only is None or one.does in only)
            ]
            assert chosen, f"no process of the group {group} runs"
            with world.load(rate=rate):
                for kind in chosen:
                    before = world.processes()
                    one = next((p for p in before if (p.node, p.does) == (kind.node, kind.does)), None)
                    if one is None:  # a backend that has gone meanwhile
                        continue
                    world.kill(one)
                    print(f"{one} was killed: all was back after {world.well(before, one):.1f} s")
            reads, writes = _failures(world)
            for witness, (read, wrote) in zip(seen, marks, strict=True):
                reads += witness.failed_reads[read:]
                writes += witness.failed_writes[wrote:]
            print(f"{group}: failed reads {reads}, failed writes {writes}")
            assert not (unexpected(reads, PROMISES[group].reads)), (group, reads)
            assert not (unexpected(writes, PROMISES[group].writes)), (group, writes)
    assert not (surprises := _surprises(world)), surprises[:3]
    for witness in seen:
        assert witness.acknowledged
        assert not witness.wrong, witness.wrong[:5]
        assert set(witness.acknowledged) <= witness.seen, f"{witness.name} lost what was acknowledged"


@dataclass(frozen=True)
class Promise:
    """How requests may fail, by the beginning of what is said of them."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


PROMISES = {
    "replicas": Promise(),
    "pooler": Promise(reads=("status 503",), writes=("status 503", "status 500")),
    "primary": Promise(reads=("status 503",), writes=("status 503", "status 500")),
}


def unexpected(failures: list[str], allowed: tuple[str, ...]) -> list[str]:
    return [failure for failure in failures if not failure.startswith(allowed)] if allowed else failures


def _surprises(world: Market) -> list[str]:
    """What app servers answered 500 for, but that nobody knows the outcome of a COMMIT, which is promised."""
    found: list[str] = []
    for log in (world.project.home / "logs").glob("app-*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if '"event":"request_failed"' in line and "springtide.errors.CommitUnknown" not in line:
                found.append(line[:2000])
    return found


def _group(world: Market, one: Mortal) -> str:
    if one.does == "pgbouncer":
        return "pooler"
    return "primary" if one.node == world.primary else "replicas"


def _failures(world: Market) -> tuple[list[str], list[str]]:
    """Failed reads and writes of the load; those that its own end cut off are none."""
    reads: list[str] = []
    writes: list[str] = []
    for route, found in world.report()["routes"].items():
        failed = reads if route.startswith("GET ") else writes
        for kind, count in found["errors"].items():
            if kind != "unfinished":
                failed += [f"{kind}: {route}"] * count
    return reads, writes
