"""How every benchmark measures: contenders take turns, the median of their rounds counts.

Taking turns spreads what the machine does meanwhile over all of them; a ratio is taken within each round
and its median reported, so that a slow round slows both sides. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Rounds", "alternate", "arguments", "drive", "finish"]


def arguments(description: str | None, *, rounds: int = 7, quick_rounds: int = 5) -> argparse.Namespace:
    """`--quick` and `--rounds`; afterwards `rounds` holds the number to run."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a smoke test")
    parser.add_argument("--rounds", type=int, default=None, help="alternating rounds (at least 5)")
    options = parser.parse_args()
    options.rounds = options.rounds or (quick_rounds if options.quick else rounds)
    if options.rounds < 5:
        parser.error(f"--rounds must be >= 5 for a median to mean something, got {options.rounds}")
    return options


@dataclass
class Rounds:
    """Seconds per operation of each contender, one figure per round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, peer: str) -> float:
        """Time of `name` relative to `peer` (below 1 is faster): the median over the rounds."""
        pairs = zip(self.seconds[name], self.seconds[peer], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def table(self, baseline: str) -> str:
        lines = [f"{'':28}{'per operation':>15}{'spread':>17}{'to ' + baseline:>24}"]
        for name, figures in self.seconds.items():
            spread = f"{min(figures) * 1e6:.0f}..{max(figures) * 1e6:.0f}"
            median = self.median(name) * 1e6
            lines.append(f"{name:28}{median:12.1f} us{spread:>14} us{self.ratio(name, baseline):>24.2f}")
        return "\n".join(lines)


async def drive(operation: Callable[[int], Awaitable[object]], *, total: int, concurrency: int) -> float:
    """Run `operation(n)` for n below `total` by `concurrency` callers; wall seconds per operation."""
    numbers = iter(range(total))

    async def caller() -> None:
        for number in numbers:
            await operation(number)

    begun = time.perf_counter()
    if concurrency == 1:
        await caller()
    else:
        await asyncio.gather(*(caller() for _ in range(concurrency)))
    return (time.perf_counter() - begun) / total


async def alternate(
    contenders: Mapping[str, Callable[[], Awaitable[float]]], *, rounds: int, warm_up: int = 1
) -> Rounds:
    """Let each contender run once per round, rotating who begins; each returns seconds per operation."""
    result = Rounds({name: [] for name in contenders})
    names = list(contenders)
    for number in range(-warm_up, rounds):
        for name in names:
            seconds = await contenders[name]()
            if number >= 0:
                result.seconds[name].append(seconds)
        names.append(names.pop(0))
    return result


def finish(figures: Mapping[str, object]) -> None:
    """Print the last line."""
    print(json.dumps(figures))
