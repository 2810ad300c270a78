"""docs/sessions.md is true: its application runs on a platform as it stands there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import httpx

from springtide.identity.cookies import SessionCookie
from springtide.identity.sessions import Sessions, SessionService
from springtide.platform import Platform
from springtide.topology import loads

PAGE = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text("utf-8")


async def test_the_application_of_the_page_signs_in_and_out(
    database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """On two shards, migrated by the platform, each call of the service made as a network would."""
    topology = loads(
        'name = "shop"\napp = "shop:app"\n[nodes.one]\nkind = "postgres"\n'
        f'url = "{database_urls[0]}"\n[nodes.two]\nkind = "postgres"\nurl = "{database_urls[1]}"\n'
        '[clusters.main]\nprimary = "one"\n[clusters.second]\nprimary = "two"\n'
        '[databases.default]\nshards = ["main"]\n[databases.sessions]\nshards = ["main", "second"]\n'
    )

    def build(**options: Any) -> Platform:
        return Platform(topology, home=tmp_path, check_calls=True, **options)

    found = re.search(r"```python\n# file: shop.py\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "shop"}
    exec(compile(found[1], "shop.py", "exec", dont_inherit=True), names)
    platform, app = names["make"](build)
    await platform.migrate()
    async with platform:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as http:
            token = (await http.get("/login")).json()
            assert (await http.get("/me")).json() is None
            assert (await http.post("/login", data={"csrf": "no"})).status_code == 403
            assert (await http.post("/login", data={"csrf": token})).status_code == 200
            assert (await http.get("/me")).json() == 7
            token = (await http.get("/login")).json()
            assert (await http.post("/logout", data={"csrf": token})).status_code == 200
            assert (await http.get("/me")).json() is None
            metrics = (await http.get("/metrics")).text
            assert 'springtide_sessions_total{event="rotated"} 1.0' in metrics
        names_of_work = [service.name for service in platform.background()]
        assert "sessions.purge" in names_of_work


def test_the_figures_and_names_of_the_page_are_those_of_the_code() -> None:
    options = inspect.signature(Sessions).parameters
    assert options["lifetime"].default == 7 * 86_400 and "7 days from login" in PAGE
    assert options["idle"].default == 86_400 and "1 day without a request" in PAGE
    assert options["grace"].default == 10 and "10 s (`grace`)" in PAGE
    assert options["touch"].default == 60 and "once a minute (`touch`)" in PAGE
    assert SessionCookie().set("A" * 64).replace("=" + "A" * 64, "", 1).split("; ") == [
        "__Host-session", "Path=/", "Secure", "HttpOnly", "SameSite=Lax",
    ]  # fmt: skip
    for name in re.findall(r"`(open|login|rotate|revoke\w*|list_of)\(", PAGE):
        assert hasattr(SessionService, name)
