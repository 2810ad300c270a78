"""A faulty springtide.toml is refused with every fault, its line, key, value and rule; and no password."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.errors import ConfigurationError, TopologyError
from springtide.topology import Cluster, Node, PoolSpec, Topology, load, loads

HEAD = 'name = "shop"\nstage = 1\napp = "shop:app"\n'


def faults(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        loads(text)
    return [str(fault) for fault in caught.value.faults]


def only(text: str) -> str:
    (fault,) = faults(text)
    return fault


def test_the_smallest_file() -> None:
    """Name, stage and app are enough; the rest has defaults."""
    topology = loads(HEAD)
    assert topology.nodes["db"].supervised
    assert topology.pool == PoolSpec()
    assert topology.database("users").shards == ("main",)
    assert topology.import_path == Path.cwd()


def test_all_faults_at_once_with_lines() -> None:
    """Each fault names line, key, rule and value; one does not hide another."""
    found = faults(
        """name = "two words"
app = "myapp"
path = ""
[pool]
size = true
reserved = -1
idle = "30"
[servers]
port = 70000
cpu = 0
trusted_proxies = ["10.0.0.0/33"]
[clusters.main]
primary = "nope"
[databases.default]
shards = ["missing"]
"""
    )
    assert found == [
        'line 1: name: must be letters, digits and -, starting with a letter, got "two words"',
        'line 2: app: must look like "module:attr", got "myapp"',
        'line 3: path: must not be empty, got ""',
        "line 5: pool.size: must be an integer, got true",
        "line 6: pool.reserved: must be >= 0, got -1",
        'line 7: pool.idle: must be a number, got "30"',
        "line 9: servers.port: must be between 0 and 65535, got 70000",
        "line 10: servers.cpu: must be > 0, got 0",
        'line 11: servers.trusted_proxies: must be an address, "unix" or a network such as'
        ' "10.0.0.0/8", got "10.0.0.0/33"',
        'line 13: clusters.main.primary: must name a node of this topology (there are: none), got "nope"',
        "line 15: databases.default.shards: must name a cluster of this topology"
        ' (there are: main), got "missing"',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[pool]\nsiez = 5", "line 5: pool.siez: unknown key; did you mean size?"),
        ("[nodes.db]\nmaxconnections = 5", "did you mean max_connections?"),
        ("[objective]\np95 = 1", "line 4: objective: unknown key; did you mean objectives?"),
        ("[pool]\nsize = 2", "pool.reserved: must be < pool.size, which is 2, got 2"),
        ("[pool]\nsize = 5\nreserved = 5", "line 6: pool.reserved: must be < pool.size"),
        ("[pool]\nacquire_timeout = 30", "must be < servers.request_timeout, which is 30.0"),
        ("[nodes.db]\nkind = 'postgrse'", "did you mean postgres?"),
        ("[nodes.db]\nport = 8000", "line 5: nodes.db.port: must differ from servers.port, got 8000"),
        (
            "[workers]\ncount = 3\nmetrics_port = 7998",
            "workers.metrics_port: must differ from servers.port: workers have 7998 to 8000, got 7998",
        ),
        (
            "[workers]\nmetrics_port = 7998\n[worker_scaling]\nmax = 3",
            "workers.metrics_port: must differ from servers.port: workers have 7998 to 8000, got 7998",
        ),
        (
            "[workers]\ncount = 2\nmetrics_port = 65535",
            "workers.metrics_port: must leave each worker a port: the last one would have 65536, got 65535",
        ),
        ("[nodes.a]\nport = 5\n[nodes.b]\nport = 5", "line 7: nodes.b.port: must differ from nodes.a.port"),
        ("[nodes.db]\nport = 0", "must be between 1 and 65535, got 0"),
        ("[nodes.app-1]", "belongs to the app servers"),
        (
            "[nodes.x]\nkind='redis'\n[clusters.main]\nprimary='x'",
            "must name a node of kind postgres; nodes.x.kind is redis",
        ),
        ("[clusters.second]\nprimary = 'bd'", "line 5: clusters.second.primary: must name a node"),
        ("[clusters.second]", "line 4: clusters.second.primary: is required"),
        ("[clusters.main]\nreplicas = ['db']", "must not list the cluster's primary"),
        ("[clusters.b]\nprimary = 'db'\ndbname = 'main'", "uses database 'main' on node db already"),
        (
            "[clusters.main]\nmax_lag = 11",
            "line 5: clusters.main.max_lag: must be between 0.1 and 10, got 11",
        ),
        ("[clusters.main]\nmax_lag = 2\nlook_every = 0.5", "must be >= 5 x clusters.main.look_every"),
        ("[clusters.main]\nmin_serving = -1", "must be between 0 and 100, got -1"),
        ("[databases.d]\nshards = ['main']\ndurability = 'quorum'", "needs a replica that confirms commits"),
        ("[databases.default]\nshards = []", "must name 1 to 1024 clusters"),
        ("[databases.default]\nshards = ['main', 'main']", "must not be listed twice"),
        ("[databases.default]\nshards = 'main'", 'must be a list of strings, got "main"'),
        ("[databases.default]\nshards = [1]", "must be a list of strings, got [1]"),
        ("[objectives]\np95 = 3.0", "must be <= objectives.page, which is 2.0"),
        ("[objectives]\npeak_rps = nan", "must be > 0, got nan"),
        ("[objectives]\npeak_rps = inf", "must be > 0, got inf"),
        ("[pool]\nsize = 0xFFFFFFFFFFFFFFFFFFFF", "must fit into 64 bits, got 1208925819614629174706175"),
        ("[nodes.db]\nurl = 'mysql://h/x'", "must start with postgresql:// or postgres://"),
        ("[nodes.db]\nurl = 'postgresql://h/x'\nport = 5", "remove this key or the url"),
        ("[nodes.db]\nurl = 'postgresql://h:99999/x'", "must have a valid host and port"),
        ("[nodes.r]\nkind = 'redis'\nmax_connections = 10", "only a node of kind postgres has it"),
        ("pool = 5", "line 4: pool: must be a table, got 5"),
        (f"[pool]\nsize = 0x{'f' * 6000}", "must fit into 64 bits, got 0xfff"),
        (f"[databases.default]\nshards = [0x{'f' * 6000}]", "must be a list of strings, got [0xfff"),
        ("nodes = 5", "line 4: nodes: must be a table, got 5"),
        ("nodes.db = 'x'", 'line 4: nodes.db: must be a table, got "x"'),
        ("nodes.nothing = false", "there is nothing to take out"),
        ("'a.b' = 1", "line 4: a.b: unknown key"),
        (
            "[servers]\ncount = 10",
            "(servers.count 10 + workers.count 1) * pool.size 20 + workers.count 1 * 2 (listener, heartbeat)"
            " + 5 (migrations, people) = 227 connections do not fit",
        ),
    ],
)
def test_one_fault(text: str, expected: str) -> None:
    """A single mistake gives a single fault that says what to change."""
    assert expected in only(HEAD + text)


def test_a_fault_does_not_cause_others() -> None:
    """What would only follow from a value that is faulty itself is not reported."""
    for text in (
        "[pool]\nsize = '50'\nreserved = 25",
        "[servers]\nrequest_timeout = -1\n[pool]\nacquire_timeout = 100",
        "[nodes.cache]\nkind = 'rediss'\nurl = 'redis://h'\n[cache]\nnode = 'cache'",
        "[nodes.db]\nkind = 'postgrse'",
        "[clusters]\nsecond = 5\n[databases.default]\nshards = ['second']",
    ):
        only(HEAD + text)
    head = "name = 'a'\napp = 'a:a'\n"
    assert "line 3: stage: must be between 1 and 7, got 9" in only(head + "stage = 9")
    only("name = 'a'\napp = 'a:a'\nstage = '1'\n[clusters.second]\nprimary = 'db'")


def test_a_given_redis_may_be_a_server_a_socket_sentinels_or_a_cluster() -> None:
    """Each url that leads to one is taken as it is; the others say what is missing."""
    text = HEAD + "[nodes.r]\nkind = 'redis'\nurl = "
    for url in (
        "redis://h",
        "rediss://:p@h:6380/1?ssl_ca_certs=/ca.crt",
        "unix:///run/redis.sock",
        "unix://:p@/run/redis.sock?db=1",
        "redis+sentinel://:p@h1:26379,h2:26379/main",
        "redis+cluster://[::1]:7000,h2",
    ):
        assert loads(f"{text}'{url}'").nodes["r"].url == url
    for url, rule in (
        ("redis://h1:1,h2:2", "must have a valid host and port"),
        ("redis:///0", "must have a host"),
        ("unix://", 'must look like "scheme://user:password@host:port/name" or "unix:///path"'),
        ("unix://:p@/", "must name a socket"),
        ("redis+sentinel://h1,h2", "must end in the primary's name"),
        ("redis+cluster://h1:70000,h2", "must have a valid host and port"),
        ("redis+cluster://h1,,h2", "must have a host"),
        ("memcached://h", "must start with redis:// or rediss://"),
    ):
        assert rule in only(f"{text}'{url}'"), url


def test_kafka_and_sqs_are_given() -> None:
    """Nobody starts them here, so they need a url that leads to them; Kafka's may name several brokers."""
    for kind, good, bad, rule in (
        ("kafka", "kafka+ssl://u:p@k1:9093,k2?replicas=3", "kafka://k1:1,k2:70000", "valid host and port"),
        ("sqs", "https://sqs.eu-central-1.amazonaws.com", "sqs://h", "must start with http:// or https://"),
    ):
        text = HEAD + f"[nodes.b]\nkind = '{kind}'\n"
        assert "nodes.b.url: is required, because a node of kind" in only(text)
        assert loads(f"{text}url = '{good}'").nodes["b"].url == good
        assert rule in only(f"{text}url = '{bad}'")


def test_too_many_connections_says_what_to_set() -> None:
    """The number in the sentence is the smallest that works."""
    text = HEAD + "[servers]\ncount = 10\n[nodes.db]\nmax_connections = "
    assert "set it to at least 230" in only(text + "229")
    assert loads(text + "230").nodes["db"].max_connections == 230


def test_a_pooler_bounds_what_its_server_sees_and_is_bounded_itself() -> None:
    """Behind it the fleet is the pooler's to take in; what goes round it still counts on the server."""
    text = (
        HEAD
        + "[servers]\ncount = 49\n[nodes.bouncer]\nkind = 'pgbouncer'\n[poolers.main]\nnode = 'bouncer'\n"
    )
    fault = only(text + "max_clients = 999")
    assert (
        "poolers.main.max_clients: (servers.count 49 + workers.count 1) * pool.size 20 * 1 clusters" in fault
    )
    assert "= 1000 clients: set it to at least 1000, or lower" in fault
    fault = only(text + "server_connections = 191")
    assert (
        "nodes.db.max_connections: poolers.main.server_connections 191 + workers.count 1 * 2"
        " (listener, heartbeat) + 5 (migrations, people) = 198 connections do not fit" in fault
    )
    assert loads(text + "server_connections = 190").pooler("main") is not None


def test_every_process_asks_the_servers_of_a_replicated_cluster_who_they_are() -> None:
    """One connection per process and server, on replicas, too, past any pooler."""
    text = HEAD + "[nodes.r]\n[clusters.main]\nreplicas = ['r']\n[pool]\nsize = 96\n"
    assert (
        "nodes.r.max_connections: (servers.count 1 + workers.count 1) * pool.size 96"
        " + (servers.count 1 + workers.count 1) * 1 (who is primary) + 5 (migrations, people) = 199"
        in only(text + "[nodes.db]\nmax_connections = 999\n")
    )


REDIS = "[nodes.{name}]\nkind = 'redis'\n"


def test_the_node_that_carries_jobs() -> None:
    """The only one of its kind, or the one that is named; without a broker there is none."""
    one, two = REDIS.format(name="a"), REDIS.format(name="b")
    assert loads(HEAD).carrier is None
    assert loads(HEAD + one + "[jobs]\n").carrier is None
    assert loads(HEAD + one + "[jobs]\ntransport = 'redis'\n").carrier == "a"
    assert loads(HEAD + one + two + "[jobs]\ntransport = 'redis'\nnode = 'b'\n").carrier == "b"
    assert "jobs.node: must say which: several nodes are of kind redis" in only(
        HEAD + one + two + "[jobs]\ntransport = 'redis'\n"
    )
    assert "jobs.node: needs another jobs.transport than postgres" in only(
        HEAD + one + "[jobs]\nnode = 'a'\n"
    )
    nats = "[nodes.n]\nkind = 'nats'\n"
    assert "jobs.node: must name a node of kind nats; nodes.a.kind is redis" in only(
        HEAD + one + nats + "[jobs]\ntransport = 'nats'\nnode = 'a'\n"
    )


def test_two_poolers_do_not_share_a_node() -> None:
    """Each has its own limits, and one process serves one of them."""
    text = HEAD + "[nodes.bouncer]\nkind = 'pgbouncer'\n[clusters.second]\nprimary = 'db'\ndbname = 'x'\n"
    text += "[poolers.a]\nnode = 'bouncer'\n[poolers.b]\nnode = 'bouncer'\nclusters = ['second']\n"
    assert "poolers.b.node: is the node of pooler a already" in only(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = ", "line 1: syntax: column 8"),
        ("a = 1\nb == 2", "line 2: syntax: column 4"),
        ("a = 1\na = 2", "line 2: syntax: column 6"),
        ('a = """\n', "line 2: syntax: column 1"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 5000, "syntax"),
    ],
)
def test_syntax_errors_give_line_and_column(text: str, expected: str) -> None:
    assert expected in only(text)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host:99999/db",
        "postgresql://me:s3cret@ho st/db",
        "mysql://me:p@s3cret/x@host/db",
        "postgresql//me:s3cret@host/db",
        "me:s3cret@host",
        "mysql://me:s3cret@host/db",
        "postgresql://host:bad/db?password=s3cret",
    ],
)
def test_a_password_never_appears_in_an_error(url: str) -> None:
    """However the url is broken, and under a wrong key or type as well."""
    as_x = f"x = '{url}'"
    for text in (as_x, f"nodes.db.url = '{url}'", f"nodes.db.url = ['{url}']", f"nodes.db = '{url}'"):
        assert "s3cret" not in "\n".join(faults(HEAD + text)), text


def test_file_errors(tmp_path: Path) -> None:
    """A missing file, a folder and wrong bytes each have their sentence."""
    path = tmp_path / "springtide.toml"
    with pytest.raises(ConfigurationError, match="there is no file"):
        load(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path)
    path.write_bytes(b'name = "x"\n\xff')
    with pytest.raises(TopologyError, match="line 2: syntax: the file must be UTF-8"):
        load(path)
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"[pool]\r\nsize = 0\r\n")
    with pytest.raises(TopologyError, match=r"line 5: pool\.size: must be >= 1, got 0"):
        load(path)


def test_parts_of_a_preset_are_taken_out_with_false() -> None:
    topology = loads(
        'name="a"\napp="a:a"\nstage=2\nbackups=false\nnetwork=false\npoolers.main=false\nnodes.pooler=false\n'
        'nodes.db.machine="local"'
    )
    assert topology.backups is None
    assert set(topology.nodes) == {"db"}


def test_addresses_and_given_urls() -> None:
    """A supervised node's database is named by the cluster, a given one's by its url, `dbname` beats both."""
    topology = loads(
        HEAD + "[nodes.far]\nurl='postgresql://u:p@h:1/shop?sslmode=require'\n[clusters.far]\nprimary='far'\n"
        "[clusters.other]\nprimary='far'\ndbname='other'"
    )
    with pytest.raises(ConfigurationError, match="springtide up"):
        topology.cluster_url("main")
    started = topology.with_addresses({"db": "postgresql://s@127.0.0.1:5/postgres"})
    assert started.cluster_url("main") == "postgresql://s@127.0.0.1:5/main"
    assert started.cluster_url("far") == "postgresql://u:p@h:1/shop?sslmode=require"
    assert started.cluster_url("other") == "postgresql://u:p@h:1/other?sslmode=require"
    assert started.nodes["db"].supervised
    assert "s@127" not in repr(started)
    with pytest.raises(ConfigurationError, match="nope"):
        topology.with_addresses({"nope": "x"})
    with pytest.raises(ConfigurationError, match="no cluster 'nope'"):
        topology.cluster_url("nope")


def test_a_topology_made_in_code_keeps_the_same_rules() -> None:
    """There is no way around validation."""
    with pytest.raises(TopologyError, match="size: must be >= 1, got 0"):
        PoolSpec(size=0)
    with pytest.raises(TopologyError, match=r"clusters\.main\.primary"):
        Topology(name="a", app="a:a", clusters={"main": Cluster(name="main", primary="db")})
    with pytest.raises(TopologyError) as caught:
        Node(name="db", url="bad:s3cret@host")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(TopologyError, match="under its own name"):
        Topology(name="a", app="a:a", nodes={"x": Node(name="y")})
    with pytest.raises(ConfigurationError, match="has no database"):
        Topology(name="a", app="a:a").database("users")


_scalars = st.one_of(
    st.text("ab:/@.-é\\'\"\n", max_size=6).map(lambda text: '"' + text.translate(_ESCAPE) + '"'),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["true", "false", "nan", "-inf", "1.5", "[]", "{}", '["main"]', "[{a = 2}]", "07:00:00"]),
)
_ESCAPE = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_known = [
    *("name", "stage", "app", "path", "pool", "pool.size", "pool.nope", "servers.port", "servers.cpu"),
    *("nodes", "nodes.db", "nodes.db.url", "nodes.db.kind", "nodes.x.region", "nodes.x", "clusters.main"),
    *("clusters.c.primary", "clusters.c.replicas", "databases.default.shards", "databases.d", "backups"),
    *("cache", "cache.node", "regions.r", "stores.s.node", "poolers.p.clusters", "jobs.transport", "'q q'.x"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_known), _scalars), max_size=6))
def test_any_values_give_a_topology_or_faults_with_lines(pairs: list[tuple[str, str]]) -> None:
    """Nothing but TopologyError comes out; every fault of a key in the file has a line."""
    text = "".join(f"{key} = {value}\n" for key, value in pairs)
    try:
        loads(text)
    except TopologyError as error:
        assert str(error)
        for fault in error.faults:
            first = fault.key.partition(".")[0]
            assert fault.line is not None or fault.key == "syntax" or not text.startswith(first), fault


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("name = true", "true"),
        ("name = 1979-05-27T07:32:00Z", "1979-05-27T07:32:00+00:00"),
        ("name = inf", "inf"),
        ("name = 'two \"words\"'", '"two \\"words\\""'),
        ('name = "a\\u001b[31m\\n\\u202e"', '"a\\u001b[31m\\n\\u202e"'),
        ("name = [1, {a = false, 'b c' = []}]", '[1, {a = false, "b c" = []}]'),
        (f"name = '{'é' * 5000}'", f'"{"é" * 99}…"'),
    ],
)
def test_a_value_is_shown_as_the_file_would_spell_it(line: str, shown: str) -> None:
    """A reader sees TOML, one line, not too long, and nothing that drives a terminal."""
    assert only(f'{line}\nstage = 1\napp = "a:a"\n').endswith(f", got {shown}")


def test_of_a_list_the_faulty_elements_are_named_on_their_lines() -> None:
    """A good neighbour is not blamed."""
    found = faults(
        HEAD + '[servers]\ntrusted_proxies = [\n  "10.0.0.0/8",\n  "10.0.0.5/8",\n  "x",\n]\n'
        '[clusters.main]\nreplicas = ["db", "a b"]\n'
        '[databases.default]\nshards = ["main", "main"]\n'
    )
    assert [fault.partition(": must")[0] for fault in found[:3]] == [
        "line 7: servers.trusted_proxies",
        "line 8: servers.trusted_proxies",
        "line 11: clusters.main.replicas",
    ]
    assert [fault.rpartition(", got ")[2] for fault in found[:3]] == ['"10.0.0.5/8"', '"x"', '"a b"']
    assert found[3:] == ['line 13: databases.default.shards: must not be listed twice, got "main"']


def test_two_clusters_are_never_the_same_database() -> None:
    """Two nodes that are one server under two names would hold every row of two shards in one place."""
    nodes = (
        '[nodes.db]\nurl = "postgresql://a:x@db.internal/shop"\n'
        '[nodes.other]\nkind = "postgres"\nurl = "postgres://b:y@DB.internal:5432/{path}"\n'
        '[clusters.second]\nprimary = "other"\n[databases.content]\nshards = ["main", "second"]\n'
    )
    fault = only(HEAD + nodes.format(path="shop"))
    assert fault == (
        "line 9: clusters.second.dbname: cluster main uses database 'shop' on db.internal:5432 already;"
        " give a dbname"
    )
    assert loads(HEAD + nodes.format(path="content")).clusters["second"].primary == "other"


def test_clients_go_through_the_pooler_and_control_connections_past_it() -> None:
    """A supervised pooler knows clusters by their names; a given one by the database of its url, else of the
    cluster's."""
    text = (
        HEAD
        + """
[nodes.far]
url = "postgresql://u:p@h/shop?sslmode=require"
[nodes.near]
kind = "pgbouncer"
[nodes.own]
kind = "pgbouncer"
url = "postgresql://u:p@pool:6432?sslmode=verify-full"
[nodes.named]
kind = "pgbouncer"
url = "postgresql://u:p@pool:6433/alias"
[clusters.far]
primary = "far"
[clusters.other]
primary = "far"
dbname = "other"
[poolers.near]
node = "near"
[poolers.own]
node = "own"
clusters = ["far"]
[poolers.named]
node = "named"
clusters = ["other"]
prepared_statements = 100
"""
    )
    topology = loads(text)
    with pytest.raises(ConfigurationError, match="node 'db' has no address"):
        topology.client_url("main")
    topology = topology.with_addresses({"db": "postgresql://s@127.0.0.1:5/x"})
    with pytest.raises(ConfigurationError, match="node 'near' has no address"):
        topology.client_url("main")
    topology = topology.with_addresses({"near": "postgresql://s:q@127.0.0.1:6/"})
    assert topology.client_url("main") == "postgresql://s:q@127.0.0.1:6/main"
    assert topology.cluster_url("main") == "postgresql://s@127.0.0.1:5/main"
    assert topology.client_url("far") == "postgresql://u:p@pool:6432/shop?sslmode=verify-full"
    assert topology.client_url("other") == "postgresql://u:p@pool:6433/alias"


def test_with_tls_a_given_server_must_say_that_it_is_encrypted() -> None:
    """A url without sslmode would connect in the clear where the server lets it."""
    text = HEAD + "[network]\n[nodes.db]\nurl = 'postgresql://u:secret@h/x"
    fault = only(text + "'")
    assert "nodes.db.url: must say sslmode=verify-full or verify-ca or require, because network.tls" in fault
    assert "secret" not in fault
    assert "must say sslmode" in only(text + "?sslmode=prefer'")
    assert loads(text + "?sslmode=require'").network is not None
    assert loads(text.replace("[network]", "[network]\ntls = false") + "'").network is not None


def test_patroni_names_the_servers_of_a_given_cluster() -> None:
    """It stands for replicas, for durability too; beside a list of them or over a node that the runner starts
    it is refused."""
    text = "name = 'x'\napp = 'x:app'\n[nodes.db]\n{url}\n[clusters.main]\nprimary = 'db'\n{more}\n"
    text += (
        "patroni = ['http://10.0.0.1:8008']\n[databases.default]\nshards = ['main']\ndurability = 'quorum'"
    )
    url = "url = 'postgresql://u@h/x'"
    assert loads(text.format(url=url, more="")).clusters["main"].replicated
    with pytest.raises(TopologyError, match=r"give nodes\.db\.url"):
        loads(text.format(url="", more=""))
    listed = f"{url}\n[nodes.other]\nurl = 'postgresql://u@h2/x'"
    with pytest.raises(TopologyError, match=r"remove clusters\.main\.replicas"):
        loads(text.format(url=listed, more="replicas = ['other']"))
