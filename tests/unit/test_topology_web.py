"""What the topology allows for the app servers is what the layers around an application accept."""

from __future__ import annotations

import pytest

from springtide.errors import TopologyError
from springtide.topology import ServerSpec, loads
from springtide.web.asgi import Layers


async def nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("never called")


def accepted_by_topology(key: str, values: list[str]) -> bool:
    listed = ", ".join(f'"{value}"' for value in values)
    try:
        loads(f'name = "a"\nstage = 1\napp = "a:a"\n[servers]\n{key} = [{listed}]\n')
    except TopologyError:
        return False
    return True


def accepted_by_layers(key: str, values: list[str]) -> bool:
    try:
        if key == "cors_origins":
            Layers(nothing, cors_origins=values)
        else:
            Layers(nothing, trusted_proxies=values)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "values", "fine"),
    [
        ("cors_origins", [], True),
        ("cors_origins", ["*"], True),
        ("cors_origins", ["*", "https://a.example"], False),
        ("cors_origins", ["https://A.example:8443", "http://[::1]:3000"], True),
        ("cors_origins", ["capacitor://localhost"], True),
        ("cors_origins", ["https://a.example/"], False),
        ("cors_origins", ["https://a.example?x=1"], False),
        ("cors_origins", ["https://user@a.example"], False),
        ("cors_origins", ["https://a.example:port"], False),
        ("cors_origins", ["https://ä.example"], False),
        ("cors_origins", ["null"], False),
        ("trusted_proxies", [], True),
        ("trusted_proxies", ["10.0.0.0/8", "fd00::/8", "192.0.2.1", "unix"], True),
        ("trusted_proxies", ["10.0.0.5/8"], False),
        ("trusted_proxies", ["10.0.0.0/33"], False),
        ("trusted_proxies", ["proxy.internal"], False),
        ("trusted_proxies", ["*"], False),
    ],
)
def test_both_decide_alike(key: str, values: list[str], fine: bool) -> None:
    """A topology that validates must not fail when its app servers start."""
    assert accepted_by_layers(key, values) is fine
    assert accepted_by_topology(key, values) is fine


def test_the_defaults_are_the_same() -> None:
    """`Layers` used alone behaves as one that a topology made."""
    spec = ServerSpec()
    defaults = Layers.__init__.__kwdefaults__
    assert defaults is not None
    for option in ("request_timeout", "body_bytes", "trusted_proxies", "cors_origins"):
        assert defaults[option] == getattr(spec, option)
