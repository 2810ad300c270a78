"""Programs that read what strangers sent keep to their limits, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import pairwise
from pathlib import Path

from market.media.workshop import MAX_OUTPUT, Workshop

PYTHON = [sys.executable, "-I", "-S", "-c"]


async def test_memory_is_limited() -> None:
    workshop = Workshop(memory_bytes=200 << 20)
    ended = await workshop.run([*PYTHON, "x = bytearray(400 << 20)"])
    assert ended.code == 1
    assert "MemoryError" in ended.errors
    assert (await workshop.run([*PYTHON, "x = bytearray(40 << 20)"])).code == 0


async def test_time_is_limited() -> None:
    """A program that waits is killed; one that only works is stopped by its CPU limit as well."""
    assert (await Workshop(seconds=0.5).run([*PYTHON, "import time; time.sleep(600)"])).code is None


async def test_files_are_limited(tmp_path: Path) -> None:
    file = tmp_path / "file"
    ended = await Workshop(file_bytes=1 << 20).run(
        [*PYTHON, f"open({str(file)!r}, 'wb').write(bytes(9 << 20))"]
    )
    assert ended.code != 0
    assert file.stat().st_size <= 1 << 20


async def test_output_is_limited() -> None:
    ended = await Workshop().run([*PYTHON, "print('x' * 5_000_000)"])
    assert ended.code == 0
    assert len(ended.output) == MAX_OUTPUT


async def test_the_environment_is_not_handed_on() -> None:
    os.environ["MARKET_MEDIA_KEY_OF_TEST"] = "secret"
    try:
        ended = await Workshop().run([*PYTHON, "import os; print(sorted(os.environ))"])
    finally:
        del os.environ["MARKET_MEDIA_KEY_OF_TEST"]
    assert "KEY_OF_TEST" not in ended.output
    assert "PATH" in ended.output


async def test_a_program_ends_with_its_caller(tmp_path: Path) -> None:
    """Cancelled, it is killed before the call returns."""
    file = tmp_path / "pid"
    code = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(Workshop().run([*PYTHON, code]))
    while not (file.exists() and file.read_text()):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not Path(f"/proc/{file.read_text()}").exists()


async def test_only_so_many_run_at_once() -> None:
    workshop = Workshop(at_once=1)
    code = "import time; a = time.monotonic(); time.sleep(0.1); print(a, time.monotonic())"
    ended = await asyncio.gather(*(workshop.run([*PYTHON, code]) for _ in range(3)))
    spans = sorted(tuple(map(float, one.output.split())) for one in ended)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
