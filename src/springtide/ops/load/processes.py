"""One run in one process or spread over several: the same plan, results merged.

With one process the generator runs in this loop. With more, each is `python -m springtide.ops.load.processes`
and speaks lines of JSON: it reads its Task, prepares, says Ready, waits for Go (a time on the machine-wide
monotonic clock, so that all begin together), sends a Snapshot now and then, and at the end Done. It stops
when told to or when its input ends, so that none outlives a parent that was killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from springtide.errors import LoadError, SpringtideError
from springtide.ops._process import runner
from springtide.ops.load.generator import Generator, Options, Snapshot
from springtide.ops.load.histogram import Histogram
from springtide.ops.load.results import Results
from springtide.ops.load.source import find_journeys

__all__ = ["Run", "main"]

LINE_BYTES = 64 * 1024 * 1024
HEAD_START = 0.2
EXIT_WITHIN = 10.0
CHILD_INTERVAL = 0.25
ENDED = "the load was ended before it began"

Progress = Callable[[Snapshot, float], None]
"""Called with a snapshot and the seconds since the one before."""


class Task(msgspec.Struct, frozen=True, tag=True):
    options: Options
    journeys: str
    path: str


class Go(msgspec.Struct, frozen=True, tag=True):
    at: float


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


class Ready(msgspec.Struct, frozen=True, tag=True):
    pass


class Seen(msgspec.Struct, frozen=True, tag=True):
    snapshot: Snapshot


class Done(msgspec.Struct, frozen=True, tag=True):
    """`error` is the sentence of the fault that ended the run, None when it ended as planned."""

    results: Results | None
    error: str | None = None


class Run:
    """One run; `stop()` ends it early. `results` has what was measured, also after a fault."""

    def __init__(
        self,
        options: Options,
        *,
        journeys: str,
        path: Path,
        processes: int = 1,
        progress: Progress | None = None,
        interval: float = 1.0,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes must be >= 1, got {processes}")
        if not interval > 0:
            raise ValueError(f"interval must be > 0 seconds, got {interval}")
        self._options = options
        self._journeys = journeys
        self._path = path
        self._processes = processes
        self._progress = progress
        self._interval = interval
        self._stopping = asyncio.Event()
        self.results: Results | None = None

    def stop(self) -> None:
        self._stopping.set()

    async def drive(self) -> Results:
        """Prepare and run. Raises LoadError, ConfigurationError."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            return await (self._alone(stopping) if self._processes == 1 else self._together(stopping))
        finally:
            stopping.cancel()
            await asyncio.wait([stopping])

    async def _alone(self, stopping: asyncio.Task[bool]) -> Results:
        generator = Generator(self._options, find_journeys(self._journeys, path=self._path))
        if not await _unless(stopping, generator.prepare()):
            raise LoadError(ENDED)
        self.results = generator.results
        stopping.add_done_callback(lambda task: None if task.cancelled() else generator.stop())
        reporting = asyncio.create_task(self._report(generator.snapshot))
        try:
            return await generator.run()
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])

    async def _together(self, stopping: asyncio.Task[bool]) -> Results:
        children = [_Child() for _ in range(self._processes)]
        try:
            if not await _unless(stopping, self._prepare(children)):
                raise LoadError(ENDED)
            go = Go(time.monotonic() + HEAD_START)
            stopping.add_done_callback(lambda task: None if task.cancelled() else _stop(children))
            reporting = asyncio.create_task(self._report(lambda: _combined(children)))
            try:
                dones = await asyncio.gather(*(child.run(go) for child in children))
            finally:
                reporting.cancel()
                await asyncio.wait([reporting])
        finally:
            await asyncio.gather(*(child.end() for child in children))
        found = [done.results for done in dones if done.results is not None]
        if found:
            self.results = Results.merged(found)
        for done in dones:
            if done.error is not None:
                raise LoadError(done.error)
        assert self.results is not None
        return self.results

    async def _prepare(self, children: Sequence[_Child]) -> None:
        share = len(children)
        try:
            async with asyncio.TaskGroup() as group:
                for part, child in enumerate(children):
                    options = msgspec.structs.replace(
                        self._options,
                        part=part,
                        parts=share,
                        connections=max(self._options.connections // share, 1),
                        max_in_flight=max(self._options.max_in_flight // share, 1),
                    )
                    group.create_task(child.start(Task(options, self._journeys, str(self._path))))
        except BaseExceptionGroup as errors:
            for error in errors.exceptions:
                if isinstance(error, SpringtideError):
                    raise error from errors
            raise

    async def _report(self, snapshot: Callable[[], Snapshot]) -> None:
        before = time.monotonic()
        while self._progress is not None:
            await asyncio.sleep(self._interval)
            now = time.monotonic()
            self._progress(snapshot(), now - before)
            before = now


class _Child:
    """The parent's side of one generator process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self.snapshot: Snapshot | None = None

    async def start(self, task: Task) -> None:
        """Return when the child is prepared. Raises LoadError."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "springtide.ops.load.processes",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the parent, which tells its children
        )
        self.say(task)
        message = await self._hear()
        if isinstance(message, Done):
            raise LoadError(message.error or "a generator process ended before it began")

    async def run(self, go: Go) -> Done:
        self.say(go)
        while True:
            message = await self._hear()
            if isinstance(message, Done):
                return message
            if isinstance(message, Seen):
                self.snapshot = _added(self.snapshot, message.snapshot)

    def say(self, message: Task | Go | Stop) -> None:
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def end(self) -> None:
        """Return when the process is gone; one that does not leave by itself is killed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(EXIT_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _hear(self) -> Ready | Seen | Done:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise LoadError(f"a generator process ended unexpectedly, with exit code {code}")
        return _from_child.decode(line)


_from_child: msgspec.json.Decoder[Ready | Seen | Done] = msgspec.json.Decoder(Ready | Seen | Done)
_from_parent: msgspec.json.Decoder[Task | Go | Stop] = msgspec.json.Decoder(Task | Go | Stop)


async def _unless(ending: asyncio.Task[Any], work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before `ending`; if not, it was cancelled. Raises what the work raised."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        done = working.done()
    finally:
        working.cancel()
        await asyncio.wait([working])
    if done:
        working.result()
    return done


def _stop(children: Sequence[_Child]) -> None:
    for child in children:
        child.say(Stop())


def _added(before: Snapshot | None, new: Snapshot) -> Snapshot:
    """`new` with the window of the one that was not shown yet."""
    if before is not None:
        new.window.merge(before.window)
    return new


def _combined(children: Sequence[_Child]) -> Snapshot:
    found = [child.snapshot for child in children if child.snapshot is not None]
    for child in children:
        if child.snapshot is not None:
            child.snapshot = msgspec.structs.replace(child.snapshot, window=Histogram(), window_failed=0)
    latest = max(found, key=lambda each: each.elapsed, default=None)
    return Snapshot(
        elapsed=latest.elapsed if latest is not None else 0.0,
        phase=latest.phase if latest is not None else "",
        planned=sum(each.planned for each in found),
        sent=sum(each.sent for each in found),
        failed=sum(each.failed for each in found),
        unsent=sum(each.unsent for each in found),
        late=sum(each.late for each in found),
        in_flight=sum(each.in_flight for each in found),
        window=Histogram.merged(each.window for each in found),
        window_failed=sum(each.window_failed for each in found),
    )


# The child's side


def _tell(message: Ready | Seen | Done) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent is gone: its end of the input says so too, and ends the run
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is buffered must go somewhere at the exit
        os.close(nowhere)


async def _child() -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = _from_parent.decode(await reader.readline())
    assert isinstance(task, Task)
    generator: Generator | None = None
    try:
        generator = Generator(task.options, find_journeys(task.journeys, path=Path(task.path)))
        hearing = asyncio.create_task(reader.readline())  # nothing comes before Ready, but the parent's end
        if not await _unless(hearing, generator.prepare()):
            return 0
        _tell(Ready())
        line = await hearing
        go = _from_parent.decode(line) if line else Stop()
        if not isinstance(go, Go):
            return 0
        listening = asyncio.create_task(_listen(reader, generator))
        telling = asyncio.create_task(_snapshots(generator))
        try:
            await generator.run(go.at)
        finally:
            listening.cancel()
            telling.cancel()
            await asyncio.wait([listening, telling])
        _tell(Seen(generator.snapshot()))
        _tell(Done(generator.results))
    except SpringtideError as error:
        measured = generator.results if generator is not None else None
        _tell(Done(measured, str(error)))
    return 0


async def _listen(reader: asyncio.StreamReader, generator: Generator) -> None:
    await reader.readline()  # Stop, or the end of a parent that is gone
    generator.stop()


async def _snapshots(generator: Generator) -> None:
    while True:
        await asyncio.sleep(CHILD_INTERVAL)
        _tell(Seen(generator.snapshot()))


def main() -> int:
    with runner() as running:
        return running.run(_child())


if __name__ == "__main__":
    sys.exit(main())
