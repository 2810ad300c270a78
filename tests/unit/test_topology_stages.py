"""The presets, what is shown of a topology, and how two of them differ."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import springtide.topology
from springtide.errors import ConfigurationError, StageNotBuilt, TopologyError
from springtide.ops import topology_commands
from springtide.topology import (
    Node,
    PoolSpec,
    ProgramSpec,
    Topology,
    check_built,
    diff,
    load,
    loads,
    missing_parts,
    stage_topology,
    to_json,
    to_toml,
)
from springtide.topology.built import BUILT_KINDS
from springtide.topology.keys import Field, broken, described
from springtide.topology.kinds import KINDS

ROOT = Path(__file__).parents[2]
HEAD = 'name = "shop"\nstage = 1\napp = "shop:app"\n'
ADDED = {
    2: {"nodes.pooler", "backups", "network", "poolers.main"},
    3: {"nodes.balancer", "balancer", "sessions", "deploys", "monitoring"},
    4: {"nodes.replica-1", "nodes.replica-3", "nodes.redis", "cache", "limits", "edge"},
    5: {"autoscaling", "worker_scaling", "tokens", "jobs"},
    6: {"clusters.shard-4", "services.users", "gateway", "breaker", "events", "stores.search"},
    7: {
        "regions.home",
        "regions.away",
        "replication",
        "stores.documents",
        "stores.timeseries",
        "stores.graph",
    },
}


@pytest.mark.parametrize("stage", range(1, 8))
def test_a_stage_survives_being_shown(stage: int) -> None:
    """What `show` prints of a preset reads back to the same topology."""
    topology = stage_topology(stage)
    assert loads(to_toml(topology)) == topology
    assert json.loads(to_json(topology))["stage"] == stage


@pytest.mark.parametrize("stage", range(2, 8))
def test_each_stage_adds_its_parts_and_takes_none_away(stage: int) -> None:
    """A stage is the one before plus its additions."""
    changes = diff(stage_topology(stage - 1), stage_topology(stage))
    assert ADDED[stage] <= {change.key for change in changes if change.sign == "+"}
    assert not [change for change in changes if change.sign == "-"]
    assert {
        change.key for change in diff(stage_topology(stage), stage_topology(stage - 1)) if change.sign == "-"
    }


def test_presets_use_every_layer_and_leave_optional_scalars_to_the_file() -> None:
    """The last stage has every table; a scalar that a preset set could not be unset by a file."""
    topology = stage_topology(7)
    for field in described(Topology):
        value = getattr(topology, field.name)
        own = ("modules", "seed", "journeys", "secrets", "programs", "environment")  # every file's own
        assert value or field.name in own, field.name
        items = list(value.values()) if field.tables else [value] if field.table else []
        for item in items:
            for inner in described(type(item)):
                assert not inner.optional or getattr(item, inner.name) is None, (field.name, inner.name)


def test_figures_to_start_from() -> None:
    """The defaults that the documentation promises."""
    topology = stage_topology(6)
    cache, scale, tokens, breaker = topology.cache, topology.autoscaling, topology.tokens, topology.breaker
    assert cache is not None and (cache.ttl, cache.warm_up, cache.wanted_hit_rate) == (300, 5, 0.8)
    assert 5 <= cache.l1_ttl <= 30
    assert scale is not None and (scale.min, scale.max, scale.up_cpu, scale.up_rps) == (2, 50, 0.7, 1000)
    assert (scale.up_p95, scale.down_cpu, scale.down_rps) == (0.5, 0.3, 300)
    assert (scale.down_cpu_for, scale.down_rps_for, scale.cool_down_up) == (300, 600, 180)
    assert tokens is not None and (tokens.access, tokens.refresh) == (15 * 60, 7 * 86_400)
    assert breaker is not None and (breaker.timeout, breaker.failures, breaker.probe_after) == (3, 0.5, 30)
    limits, first = topology.limits, stage_topology(1)
    assert limits is not None and (limits.client, limits.client_period) == (100, 60)
    assert (limits.address, limits.address_period) == (100, 900)
    assert (first.pool.size, first.pool.idle, first.pool.acquire_timeout) == (20, 30, 2)
    assert 20 <= topology.poolers["main"].server_connections <= 50
    wanted = first.objectives
    assert (wanted.p95, wanted.page, wanted.availability, wanted.headroom) == (0.2, 2, 0.9999, 3)
    assert first.telemetry.slow_request == 1


def test_only_what_is_built_may_be_started() -> None:
    """Stage 1 and two logical shards are; every later stage is refused with the parts it lacks."""
    check_built(stage_topology(1))
    check_built(load(ROOT / "springtide.toml"))
    two = '[clusters.second]\nprimary = "db"\n[databases.default]\nshards = ["main", "second"]\n'
    check_built(loads(HEAD + two))
    given = '[nodes.db]\nurl = "postgresql://h/x"\nmachine = "far"\n'
    check_built(loads(HEAD + given))
    for stage in range(3, 8):
        with pytest.raises(StageNotBuilt, match=rf"stage {stage} needs .*the load balancer"):
            check_built(stage_topology(stage))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - BUILT_KINDS))
def test_an_unbuilt_kind_is_refused_by_name(kind: str) -> None:
    topology = loads(HEAD + f'[nodes.extra]\nkind = "{kind}"\n')
    assert missing_parts(topology) == [f"{KINDS[kind].says} (node extra)"]


BUILT = {"backups", "cache", "jobs", "network", "worker_scaling"}
"""Tables that this version acts on."""


def test_an_unbuilt_layer_is_never_ignored() -> None:
    """Any optional table, alone on stage 1, is built or refused: no key of the file is without effect."""
    full = stage_topology(7)
    for field in described(Topology):
        if not (field.optional and field.table) or field.name in BUILT:
            continue
        nodes = {name: replace(node, region="home", machine="local") for name, node in full.nodes.items()}
        layer: dict[str, Any] = {field.name: getattr(full, field.name)}
        with_layer = replace(stage_topology(1), nodes=nodes, pool=PoolSpec(size=3), **layer)
        without = replace(with_layer, **dict.fromkeys(layer))
        assert len(missing_parts(with_layer)) == len(missing_parts(without)) + 1, field.name


def test_a_changed_password_is_told_but_not_shown() -> None:
    """Neither show nor diff ever prints one."""
    one = loads(HEAD + "[nodes.db]\nurl = 'postgresql://u:s3cret1@h/d?password=s3cret2'")
    two = loads(HEAD + "[nodes.db]\nurl = 'postgresql://u:s3cret3@h/d?password=s3cret2'")
    (change,) = diff(one, two)
    text = str(change)
    assert text.startswith("~ nodes.db.url: its password or secret changed")
    shown = text + to_toml(one) + to_json(one) + "".join(map(str, diff(stage_topology(1), one)))
    assert "s3cret" not in shown
    assert "postgresql://u:***@h/d?password=***" in shown
    assert loads(to_toml(one, secrets=True)) == one


def _scalars(field: Field) -> st.SearchStrategy[Any]:
    words = st.sampled_from(["main", "redis", "text", "debug", "a:b", "merge", "canary"]) | st.text(
        max_size=5
    )
    kinds: dict[type | None, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-5, 2000) | st.integers(2**24, 2**62),
        float: st.floats(allow_nan=False) | st.floats(0.01, 1),
        str: words,
        None: st.lists(words, max_size=2).map(tuple),
    }
    return kinds[field.scalar]


@st.composite
def _topologies(draw: st.DrawFn) -> Topology:
    """A stage with random values under the rules of their keys, some parts out, perhaps called no stage."""
    stage = draw(st.integers(1, 7))
    topology = stage_topology(stage)
    roomy = {  # or most random sizes of pools would not fit
        name: replace(node, max_connections=10_000) if node.kind == "postgres" else node
        for name, node in topology.nodes.items()
    }
    topology = replace(topology, nodes=roomy)
    changes: dict[str, Any] = {"stage": draw(st.sampled_from([stage, None, 1, 7]))}
    for field in described(Topology):
        value = getattr(topology, field.name)
        if field.table and value is not None:
            if field.optional and draw(st.booleans()):
                changes[field.name] = None
                continue
            inner = draw(st.sampled_from(described(field.table)))
            drawn = draw(_scalars(inner))
            if inner.key is not None and inner.key.kinds is None and broken(inner, drawn) is None:
                changes[field.name] = replace(value, **{inner.name: drawn})
    if draw(st.booleans()):
        changes["nodes"] = {**topology.nodes, "extra": Node(name="extra", kind="redis", cpu=0.1 + 0.2)}
    if draw(st.booleans()):
        texts = st.text(max_size=5).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
        texts = texts.filter(lambda text: "\0" not in text)
        changes["environment"] = draw(st.dictionaries(st.sampled_from(["A", "MY_B", "c1"]), texts))
        changes["programs"] = {
            "mail": ProgramSpec(
                name="mail",
                command=("mail", draw(texts), "{programs.mail.smtp}"),
                ports=draw(st.dictionaries(st.sampled_from(["smtp", "web"]), st.just(0), min_size=2)),
                ready=draw(st.sampled_from([None, "web/", "smtp/x?y=1"])),
                environment=draw(st.dictionaries(st.sampled_from(["D", "E"]), texts)),
            )
        }
    changes["path"] = draw(st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text))
    try:
        return replace(topology, **changes)
    except TopologyError:
        assume(False)
        raise


@pytest.mark.parametrize(
    "char", [*map(chr, range(1, 0x20)), '"', "\\", "\x7f", "\x85", "\u2028", "\U0001f30a"]
)
def test_every_character_survives_being_shown(char: str) -> None:
    """TOML forbids raw control characters, DEL among them."""
    topology = replace(stage_topology(1), path=f"a{char}b")
    assert loads(to_toml(topology)) == topology


@settings(max_examples=50, deadline=None)
@given(_topologies())
def test_what_is_shown_reads_back_to_an_equal_topology(topology: Topology) -> None:
    """Round trip of any topology, strange strings and floats and parts taken out of a preset included."""
    assert loads(to_toml(topology)) == topology


@settings(max_examples=25, deadline=None)
@given(_topologies(), _topologies())
def test_a_diff_is_empty_only_between_equals_and_reverses(one: Topology, two: Topology) -> None:
    """diff(b, a) is diff(a, b) with before and after exchanged."""
    assert not diff(one, one)
    there, back = diff(one, two), diff(two, one)
    assert bool(there) == (one != two)
    assert {(c.key, repr(c.before)) for c in there} == {(c.key, repr(c.after)) for c in back}


def test_all_names_what_is_there() -> None:
    assert all(hasattr(springtide.topology, name) for name in springtide.topology.__all__)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    topology_commands.add_commands(parser.add_subparsers())
    args = parser.parse_args(["topology", *arguments])
    return int(args.run(args))


def test_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """show, diff and validate over files and stages."""
    monkeypatch.chdir(tmp_path)
    Path("springtide.toml").write_text(HEAD + "[pool]\nsize = 10\n")
    assert run("show") == 0
    assert loads(capsys.readouterr().out).pool.size == 10
    assert run("show", "--json", "stage3") == 0
    assert json.loads(capsys.readouterr().out)["servers"]["count"] == 3
    assert run("diff", "springtide.toml", "1") == 0
    text = capsys.readouterr().out
    assert "0 added, 1 changed, 0 removed" in text
    assert "~ pool.size: 10 -> 20" in text
    assert run("diff", "--json", "stage1", "stage2") == 0
    assert "backups" in {row["key"] for row in json.loads(capsys.readouterr().out)}
    assert run("diff", "1", "stage1") == 0
    assert "are equal" in capsys.readouterr().out
    assert run("validate") == 0
    assert "valid" in capsys.readouterr().out
    with pytest.raises(StageNotBuilt):
        run("validate", "stage4")
    with pytest.raises(ConfigurationError, match="a stage must be between 1 and 7, got stage8"):
        run("show", "stage8")


@pytest.mark.parametrize(
    ("kind", "url", "message"),
    [
        (
            "sqs",
            "http://sqs:9324?region=x&visibilty=3",
            r"\?visibilty= is not known here, only region, visibility",
        ),
        ("sqs", "http://sqs:9324?visibility=0", "visibility= must be 1 to 43200 whole seconds, got '0'"),
        ("sqs", "http://sqs:9324", None),
        ("kafka", "kafka://kafka?partitions=0", "partitions= must be 1 to 10000, got '0'"),
        ("kafka", "kafka://kafka?partition=3", r"\?partition= .* only partitions, replicas, session"),
        ("kafka", "kafka://one,two?partitions=3", None),
        ("nats", "nats://nats?roots=x", r"\?roots= is not known here, only ssl_ca_certs"),
        ("nats", "tls://nats?ssl_ca_certs=ca.crt", None),
        ("rabbitmq", "amqp://rabbit/?heartbeat=9", r"\?heartbeat= is not known here, only ssl_ca_certs"),
        ("rabbitmq", "amqps://rabbit/?ssl_ca_certs=", "ssl_ca_certs= must have a value"),
        ("redis", "redis://redis/0?pool=3", r"pool"),
        ("redis", "redis://redis/0", None),
    ],
)
def test_validate_refuses_what_a_transport_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, url: str, message: str | None
) -> None:
    """Before anything is started: keys of a broker's URL that nobody knows, and values that cannot be."""
    monkeypatch.chdir(tmp_path)
    node = f'[nodes.broker]\nkind = "{kind}"\nurl = "{url}"\n'
    Path("springtide.toml").write_text(f'{HEAD}[jobs]\ntransport = "{kind}"\n{node}')
    if message is None:
        assert run("validate") == 0
    else:
        with pytest.raises(ConfigurationError, match=rf"nodes\.broker\.url: .*{message}"):
            run("validate")
