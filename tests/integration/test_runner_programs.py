"""Programs beside the application, driven by the real command line: started, killed, taken over, reported."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration._platforms import Project, kill, project, until

from springtide.ops.runner.home import Home

TOML = """
secrets = ["key"]
[servers]
port = 0
[programs.helper]
command = ["{python}", "-m", "helper", "{programs.helper.http}", "{state}/count"]
ports = { http = 0 }
ready = "http/"
environment = { KEY = "{secrets.key}", SHOP = "{url}", OWN = "of the file" }
[environment]
HELPER_URL = "http://127.0.0.1:{programs.helper.http}"
KEY = "{secrets.key}"
OPERATORS = "of the file"
"""

HELPER = """
import http.server, json, os, pathlib, sys
count = pathlib.Path(sys.argv[2])
count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({**os.environ, "COUNT": count.read_text()}).encode())
print("helper begins", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

APP = """
import json, os, urllib.request
urllib.request.urlopen(os.environ["HELPER_URL"]).close()  # it answers before the application starts
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(dict(os.environ)).encode()})
"""


@pytest.fixture
def made(template: Path) -> Iterator[Project]:
    with project(env={"OPERATORS": "of the operator"}) as made:
        made.write(TOML, app=APP).prepare(template)
        (made.folder / "helper.py").write_text(HELPER)
        yield made


def helper(made: Project) -> dict[str, Any]:
    """What `status` says of it, and it of itself."""
    (node,) = [node for node in made.status()["nodes"] if node["node"] == "helper"]
    with urllib.request.urlopen(node["address"], timeout=10) as answer:
        return {**node, **json.loads(answer.read())}


def settled(made: Project, before: int) -> bool:
    """Whether it runs again as another process than `before`."""
    (node,) = [node for node in made.status()["nodes"] if node["node"] == "helper"]
    return node["state"] == "running" and node["pid"] not in (None, before)


def test_both_sides_know_each_other(made: Project) -> None:
    """Address and secret are the same in both; what the operator has set wins; status and logs show it."""
    assert "helper       program    http://127.0.0.1:" in made.run("up", "-d")
    app, beside = json.loads(made.get()), helper(made)
    assert app["HELPER_URL"] == beside["address"] and app["KEY"] == beside["KEY"] != ""
    assert app["OPERATORS"] == "of the operator" and beside["OWN"] == "of the file" and "OWN" not in app
    assert beside["SHOP"] == made.status()["url"] and beside["COUNT"] == "1"
    assert "helper begins" in made.run("logs", "helper")
    for path in (*(made.home / "secrets").iterdir(), made.home / "run" / "environment.json"):
        assert path.stat().st_mode & 0o077 == 0, path
    made.run("down")
    assert made.leftovers() == [] and not (made.home / "run" / "environment.json").exists()
    made.run("up", "-d")
    assert helper(made)["COUNT"] == "2"
    assert json.loads(made.get())["HELPER_URL"] == app["HELPER_URL"]


def test_a_killed_program_is_started_again(made: Project) -> None:
    """On its port, with its folder; the application is not touched."""
    made.run("up", "-d")
    before = helper(made)
    app = made.pids()["app-1"]
    kill(before["pid"])
    until(lambda: settled(made, before["pid"]))
    after = helper(made)
    assert (after["address"], after["COUNT"], after["restarts"]) == (before["address"], "2", 1)
    assert made.pids()["app-1"] == app


def test_it_waits_for_its_port(made: Project) -> None:
    """Somebody takes the port of a program that died: who is said, and it runs when the port is free."""
    made.run("up", "-d")
    before = helper(made)
    port = int(before["address"].rpartition(":")[2])
    supervisor = made.status()["supervisor"]
    kill(supervisor, signal.SIGSTOP)  # so that nobody is quicker
    kill(before["pid"])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: _bound(thief, port))
        thief.listen()
        kill(supervisor, signal.SIGCONT)
        until(lambda: f"port {port} on 127.0.0.1 is taken by" in made.run("status"))
    until(lambda: settled(made, before["pid"]), seconds=40)


def _bound(thief: socket.socket, port: int) -> bool:
    try:
        thief.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("how", ["up", "down"])
def test_after_kill_of_the_supervisor(made: Project, how: str) -> None:
    """It goes on serving and is shown as an orphan; the next `up` replaces it on its port, `down` ends it."""
    made.run("up", "-d")
    before = helper(made)
    kill(made.status()["supervisor"])
    until(lambda: made.status()["state"] == "not running")
    orphan = helper(made)
    assert (orphan["pid"], orphan["state"], orphan["kind"]) == (before["pid"], "orphaned", "program")
    if how == "up":
        made.run("up", "-d")
        after = helper(made)
        assert after["pid"] != before["pid"] and after["address"] == before["address"]
        assert json.loads(made.get())["KEY"] == before["KEY"]
    made.run("down")
    assert made.leftovers() == []


def test_what_it_started_ends_with_it(made: Project) -> None:
    """Also when that has a session of its own and the supervisor was killed."""
    child = "import subprocess, sys\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    (made.folder / "helper.py").write_text(child + HELPER)
    made.run("up", "-d")
    kill(made.status()["supervisor"])
    made.run("down")
    assert made.leftovers() == []


FAILURES = {
    "no-such-command": ("[]", "cannot start no-such-command: No such file or directory: see programs.helper"),
    "{python}": ('["-c", "raise SystemExit(\\"no licence\\")"]', "ended at once (exit status 1)"),
}


@pytest.mark.parametrize("command", FAILURES)
def test_one_that_cannot_start_is_reported(made: Project, command: str) -> None:
    """`up` says which, why, and its last lines; nothing is left running."""
    arguments, expected = FAILURES[command]
    toml = (made.folder / "springtide.toml").read_text()
    line = f"command = {json.dumps([command, *json.loads(arguments)])}"
    begin, end = toml.index("command = "), toml.index("ports = ")
    (made.folder / "springtide.toml").write_text(f"{toml[:begin]}{line}\n{toml[end:]}")
    out = made.run("up", "-d", code=1)
    assert expected in out and ("no licence" in out or command == "no-such-command")
    assert made.leftovers() == []


def test_a_taken_port_of_the_file_is_reported(made: Project) -> None:
    """A number that the file gives is never exchanged."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        file = made.folder / "springtide.toml"
        file.write_text(file.read_text().replace("http = 0", f"http = {port}"))
        out = made.run("up", "-d", code=1)
    assert f"port {port} on 127.0.0.1 is taken by process {os.getpid()}" in out
    assert "choose another with programs.helper.ports.http" in out
    assert made.leftovers() == []


def test_demo_names_it(made: Project) -> None:
    """Its address is in the list, with what the seed said last; it ends with the demo."""
    Home(made.home).write_notes(["log in as somebody"])
    out = made.run("demo", "--seconds", "0")
    assert "  helper           http://127.0.0.1:" in out and "\n  log in as somebody\n" in out
    assert made.leftovers() == []
