"""What the processes that Springtide starts have in common."""

from __future__ import annotations

import asyncio
import gc

import uvloop

from springtide.ops._process import begun, runner


def test_processes_run_on_uvloop_where_it_is_installed() -> None:
    """As their runner makes it, not by a policy that others would see."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with runner() as running:
        assert isinstance(running.run(loop()), uvloop.Loop)


def test_the_collector_leaves_out_what_was_there_when_a_process_had_begun() -> None:
    """What comes after it is collected as ever."""
    there, counted = [object()], gc.get_freeze_count()
    try:
        begun()
        assert gc.get_freeze_count() > counted
        later = [object()]
        followed = {id(one) for one in gc.get_objects()}
        assert id(there) not in followed and id(later) in followed
    finally:
        gc.unfreeze()
