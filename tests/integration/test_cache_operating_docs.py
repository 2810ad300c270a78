"""docs/cache-operating.md says what the code does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from springtide.cache import _popular, _rates, hot, watch
from springtide.ops import cache_commands
from springtide.ops.runner.redis_settings import POLICY
from springtide.topology import check_built, loads

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cache-operating.md").read_text()
TELEMETRY = (DOCS / "telemetry.md").read_text()


def test_its_topology_starts_and_shows_the_defaults() -> None:
    """The example is one that this version runs; it names every key of [cache] with its default."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    topology = loads(example)
    check_built(topology)
    shown = re.findall(r"^(\w+) = ", example.partition("[cache]")[2], re.MULTILINE)
    assert topology.cache == loads(re.sub(r"(?m)^(ttl|l1_|warm|wanted).*\n", "", example)).cache
    assert set(shown) == set(type(topology.cache).__dataclass_fields__)


def test_its_commands_are_those_that_there_are() -> None:
    parser = argparse.ArgumentParser()
    cache_commands.add_commands(parser.add_subparsers())
    commands = re.findall(r"^springtide cache (\w+)", PAGE, re.MULTILINE)
    for words in (["stats"], ["hot"], ["get", "a", "7"], ["invalidate", "a", "--tag", "b"]):
        parser.parse_args(["cache", *words])
        assert words[0] in commands
    assert len(commands) == 4


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"at most {2 * hot.KEEP} keys" in PAGE and f"1/{hot.KEEP} of the" in PAGE
    assert f"about {hot.SAMPLES:,} every {watch.EVERY:.0f} s" in PAGE
    assert f"halve in {hot.HALF_LIFE / 60:.0f} minutes" in PAGE
    assert f"({_popular.MOST} keys per class)" in PAGE
    assert f"at least {_rates.LEAST_READS} reads" in PAGE and _rates.WINDOW == 60.0


def test_every_metric_that_it_names_is_one() -> None:
    """An alarm on a metric that nobody writes never rings."""
    listed = set(re.findall(r"^\| `(springtide_\w+)`", TELEMETRY, re.MULTILINE))
    named = set(re.findall(r"`(springtide_(?:cache|behind)_\w+)", PAGE))
    assert named and named <= listed, named - listed


def test_the_policy_of_redis_is_the_one_that_the_runner_sets() -> None:
    for page in ("cache-operating", "cache-alone", "cache", "runner"):
        assert f"`{POLICY}`" in (DOCS / f"{page}.md").read_text(), page
