"""Programs beside the application: their ports and texts, when they are ready, how they fail."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from springtide.errors import ProcessCrashed, RunnerError
from springtide.ops.runner.beside import BesideProgram, Surroundings
from springtide.ops.runner.home import Home
from springtide.topology import ProgramSpec, Topology, loads

TEXT = """name = "shop"
stage = 1
app = "shop:app"
secrets = ["one", "two"]
[programs.mail]
command = ["{python}", "mail.py", "{state}", "{programs.mail.smtp}"]
ports = { smtp = 0, web = 8025 }
environment = { SECRET = "{secrets.one}" }
[programs.other]
command = ["other", "{programs.mail.web}"]
ports = { a = 0 }
[environment]
MAIL = "smtp://{secrets.two}@127.0.0.1:{programs.mail.smtp} of {url}"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / ".springtide")
    made.create()
    return made


def surroundings(home: Home, text: str = TEXT) -> tuple[Surroundings, Topology]:
    topology = loads(text)
    return Surroundings(topology, home, "http://127.0.0.1:80"), topology


def test_texts_have_their_values(home: Home) -> None:
    """Ports, secrets, folder, interpreter and address, in commands and variables alike."""
    around, topology = surroundings(home)
    smtp = around.ports["mail"]["smtp"]
    one, two = ((home.path / "secrets" / f"{name}.secret").read_text() for name in ("one", "two"))
    command, variables = around.program(topology.programs["mail"])
    assert command == [sys.executable, "mail.py", str(home.path / "programs" / "mail"), str(smtp)]
    assert variables == {"SECRET": one} and Path(command[2]).is_dir()
    assert around.program(topology.programs["other"])[0] == ["other", "8025"]
    assert around.variables == {"MAIL": f"smtp://{two}@127.0.0.1:{smtp} of http://127.0.0.1:80"}


def test_ports_and_secrets_stay(home: Home) -> None:
    """The next start has the same ones, and nobody else can read the secrets."""
    first, _ = surroundings(home)
    second, _ = surroundings(home)
    assert first.variables == second.variables and first.ports == second.ports
    assert len({first.ports["mail"]["smtp"], first.ports["other"]["a"], 8025}) == 3
    for path in (home.path / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_text()) >= 40


def test_a_free_port_that_somebody_took_is_replaced(home: Home) -> None:
    """As long as the file leaves the choice; notes that mean nothing are no obstacle."""
    first, _ = surroundings(home)
    port = first.ports["mail"]["smtp"]
    with socket.create_server(("127.0.0.1", port)):
        second, _ = surroundings(home)
    assert second.ports["mail"]["smtp"] != port and second.ports["other"] == first.ports["other"]
    notes = home.path / "programs" / "ports.json"
    for bad in ("no json", "[]", '{"mail.smtp": "x", "other.a": 99999}'):
        notes.write_text(bad)
        surroundings(home)
        assert set(json.loads(notes.read_text())) == {"mail.smtp", "mail.web", "other.a"}


def test_a_free_port_is_none_that_another_program_has(home: Home) -> None:
    """Also when the file gives a number that was free, and noted, before."""
    first, _ = surroundings(home)
    port = first.ports["mail"]["smtp"]
    second, _ = surroundings(home, TEXT.replace("a = 0", f"a = {port}"))
    assert second.ports["other"]["a"] == port != second.ports["mail"]["smtp"]


def test_an_emptied_secret_is_named(home: Home) -> None:
    """It is never replaced by itself: somebody may still use the old one."""
    surroundings(home)
    (home.path / "secrets" / "one.secret").write_text("\n")
    with pytest.raises(RunnerError, match=r"one\.secret is empty: restore it"):
        surroundings(home)


def test_variables_are_lent_to_commands(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the operator has not set; none when nothing runs."""
    monkeypatch.setenv("ST_SET", "mine")
    monkeypatch.setenv("ST_UNSET", "")
    monkeypatch.delenv("ST_UNSET")
    home.use_environment()
    assert "ST_UNSET" not in os.environ
    home.write_environment({"ST_SET": "file", "ST_UNSET": "file"})
    home.use_environment()
    assert (os.environ["ST_SET"], os.environ["ST_UNSET"]) == ("mine", "file")


SERVER = """
import http.server, sys
statuses = [int(word) for word in sys.argv[2:]]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        print("asked for", self.path, "says", status, flush=True)
        self.send_response(status)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def program(
    folder: Path, code: str, *arguments: str, ready: str | None = None, timeout: float = 30.0
) -> BesideProgram:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    (folder / "code.py").write_text(code)
    spec = ProgramSpec(name="helper", command=("x",), ports={"web": 0}, ready=ready)
    return BesideProgram(
        spec,
        [sys.executable, "code.py", str(port), *arguments],
        {"web": port},
        log=folder / "helper.log",
        folder=folder,
        env=os.environ,
        start_timeout=timeout,
    )


async def test_ready_when_the_page_answers_well(tmp_path: Path) -> None:
    """Errors are waited out; the address is a URL."""
    made = program(tmp_path, SERVER, "503", "404", "204", ready="web/up?x=1")
    await made.start()
    said = made.log.read_text()
    await made.stop()
    assert [line.split()[-1] for line in said.splitlines() if "says" in line] == ["503", "404", "204"]
    assert "asked for /up?x=1" in said
    assert made.address is not None and made.address.startswith("http://127.0.0.1:")


async def test_ready_when_its_port_accepts(tmp_path: Path) -> None:
    """Without a page nothing is asked; a program that speaks no HTTP is ready too."""
    code = "import socket, sys, time\nserver = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    made = program(tmp_path, code + "print('listens', flush=True)\ntime.sleep(60)")
    await made.start()
    assert made.log.read_text() == "listens\n"
    await made.stop()


@pytest.mark.parametrize("ready", [None, "web/"])
async def test_one_that_never_gets_ready_is_ended(tmp_path: Path, ready: str | None) -> None:
    """The message has its last lines, and nothing of it is left; a page that never answers counts too."""
    code = "import socket, sys, time\nprint('loading', flush=True)\n"
    if ready:
        code += "server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    made = program(tmp_path, code + "time.sleep(60)", ready=ready, timeout=1.0)
    with pytest.raises(RunnerError, match=r"(?s)helper was not ready within 1 s.*last lines of.*loading"):
        await made.start()
    with pytest.raises(RunnerError, match="is not running"):
        _ = made.identity


async def test_one_that_ends_at_once_has_crashed(tmp_path: Path) -> None:
    """It is not waited for until the time is over, and its last lines are in the message."""
    made = program(tmp_path, "print('no licence')\nraise SystemExit(7)", ready="web/")
    with pytest.raises(ProcessCrashed, match=r"(?s)helper ended at once \(exit status 7\).*no licence"):
        await made.start()


async def test_strange_answers_are_not_ready(tmp_path: Path) -> None:
    """A server of another protocol, or a line that never ends, is none that answers the page."""
    code = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
end = b"\\r\\n"
for answer in (b"220 smtp ready" + end, b"x" * 200_000, b"", b"HTTP/1.1" + end, b"HTTP/1.1 200 OK" + end * 2):
    connection, _ = server.accept()
    try:
        connection.sendall(answer)
        connection.close()
    except OSError:
        pass
    print("answered", flush=True)
import time; time.sleep(60)
"""
    made = program(tmp_path, code, ready="web/")
    await made.start()
    await made.stop()
    assert made.log.read_text().count("answered") >= 4


async def test_a_taken_port_is_never_mistaken_for_the_program(tmp_path: Path) -> None:
    """Who has it is named, and what to change; nothing is started."""
    made = program(tmp_path, SERVER, "200", ready="web/")
    port = int(str(made.address).rpartition(":")[2])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(
            RunnerError, match=rf"port {port} on 127\.0\.0\.1 is taken by process \d+ .*ports\.web"
        ),
    ):
        await made.start()
    assert not made.log.exists()
