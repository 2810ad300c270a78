"""Programs beside the application: their ports, the texts that name them, and their processes.

`Surroundings` gives every placeholder of the topology its value before anything starts, so a text may name a
program that is not up yet. A port 0 is a free one, taken again at the next start unless somebody has it then.
Whoever answers on a port is the program: the start is refused while somebody else has it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import ports
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.home import Home
from springtide.ops.runner.processes import Process
from springtide.ops.runner.programs import SpawnedProgram
from springtide.topology import ProgramSpec, Topology
from springtide.topology.programs import filled

__all__ = ["BesideProgram", "Surroundings"]

HOST = "127.0.0.1"
ASK_EVERY = 0.05
ANSWER_WITHIN = 5.0


class Surroundings:
    """What the texts of `topology` mean in this home. Raises RunnerError when the home cannot be used.

    ports:       program -> port -> number.
    variables:   the environment of app servers and workers, as the topology gives it.
    """

    def __init__(self, topology: Topology, home: Home, url: str) -> None:
        self._home = home
        self._values = {"url": url, "python": sys.executable}
        self._values |= {f"secrets.{name}": home.secret(name) for name in topology.secrets}
        self.ports = _allocated(topology.programs, home.read_ports())
        numbers = {f"{name}.{port}": n for name, of in self.ports.items() for port, n in of.items()}
        if numbers:
            home.write_ports(numbers)
        self._values |= {f"programs.{name}": str(number) for name, number in numbers.items()}
        self.variables = {name: filled(text, self._values) for name, text in topology.environment.items()}

    def program(self, spec: ProgramSpec) -> tuple[list[str], dict[str, str]]:
        """Its command and its own environment variables; its folder is there afterwards."""
        values = {**self._values, "state": str(self._home.folder(spec.name))}
        variables = {name: filled(text, values) for name, text in spec.environment.items()}
        return [filled(argument, values) for argument in spec.command], variables


def _allocated(programs: Mapping[str, ProgramSpec], noted: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """A number for every port: the fixed one, the noted one when it is free, another free one."""
    fixed = {number for spec in programs.values() for number in spec.ports.values()}
    with ExitStack() as held:  # until all are chosen, so that they differ

        def free(wanted: int) -> int:
            try:
                probe = held.enter_context(ports.bind(HOST, wanted, remedy=""))
            except RunnerError:
                if not wanted:
                    raise
                return free(0)
            number = int(probe.getsockname()[1])
            return free(0) if number in fixed else number

        return {
            name: {
                port: number or free(noted.get(f"{name}.{port}", 0)) for port, number in spec.ports.items()
            }
            for name, spec in programs.items()
        }


class BesideProgram(SpawnedProgram):
    """The process of one program; `command` and `env` hold no placeholders any more."""

    def __init__(
        self,
        spec: ProgramSpec,
        command: Sequence[str],
        numbers: Mapping[str, int],
        *,
        log: Path,
        folder: Path,
        env: Mapping[str, str],
        start_timeout: float = 60.0,
        drain: float = 10.0,
        cgroup: Cgroup | None = None,
    ) -> None:
        port, slash, path = (spec.ready or "").partition("/")
        super().__init__(
            spec.name,
            command,
            log=log,
            folder=folder,
            env=env,
            address=f"http://{HOST}:{numbers[port]}" if slash else ", ".join(_addresses(numbers)),
            start_timeout=start_timeout,
            drain=drain,
            cgroup=cgroup,
        )
        self._numbers = dict(numbers)
        self._page = (numbers[port], slash + path) if slash else None

    async def start(self) -> None:
        for port, number in self._numbers.items():
            remedy = f"choose another with programs.{self.name}.ports.{port}"
            (await asyncio.to_thread(ports.bind, HOST, number, remedy=remedy)).close()
        try:
            await self._launch()
        except RunnerError as error:
            if isinstance(error.__cause__, OSError):  # of the spawn: not found, no right
                raise RunnerError(f"{error}: see programs.{self.name}.command") from error.__cause__
            raise

    async def _is_ready(self, process: Process) -> bool:
        ended = asyncio.ensure_future(process.wait())
        answered = asyncio.ensure_future(self._answered())
        try:
            await asyncio.wait([ended, answered], return_when=asyncio.FIRST_COMPLETED)
            return not ended.done()
        finally:
            for task in (ended, answered):
                task.cancel()
            await asyncio.wait([ended, answered])

    async def _answered(self) -> None:
        asked = [self._page] if self._page else [(number, "") for number in self._numbers.values()]
        for port, path in asked:
            while True:
                with suppress(OSError, TimeoutError, ValueError):  # the last: a line without an end
                    async with asyncio.timeout(ANSWER_WITHIN):
                        if await _answers(port, path):
                            break
                await asyncio.sleep(ASK_EVERY)


def _addresses(numbers: Mapping[str, int]) -> Iterator[str]:
    return (f"{HOST}:{number}" for number in numbers.values())


async def _answers(port: int, path: str) -> bool:
    """Whether `port` accepts a connection and, with a `path`, answers GET with 2xx or 3xx."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        if not path:
            return True
        request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        words = (await reader.readline()).split()
        return len(words) > 1 and words[0].startswith(b"HTTP/") and words[1][:1] in (b"2", b"3")
    finally:
        writer.close()
