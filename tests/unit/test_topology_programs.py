"""Programs, secrets and environment in springtide.toml: what may be written, and what each fault says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import TopologyError
from springtide.topology import diff, loads, to_json, to_toml
from springtide.topology.programs import filled

HEAD = 'name = "shop"\nstage = 1\napp = "shop:app"\nsecrets = ["key"]\n'
MAIL = """[programs.mail]
command = ["{python}", "mail.py", "{programs.mail.smtp}", "{state}", "{{}}"]
ports = { smtp = 0, web = 8025 }
ready = "web/health?a=1"
environment = { KEY = "{secrets.key}", SHOP = "{url}/hook" }
[environment]
MAIL_URL = "smtp://user:{secrets.key}@127.0.0.1:{programs.mail.smtp}"
"""


def faults(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        loads(HEAD + text)
    return [str(fault) for fault in caught.value.faults]


def test_a_program_is_read_and_shown() -> None:
    """What `show` prints of it reads back to an equal topology."""
    topology = loads(HEAD + MAIL)
    program = topology.programs["mail"]
    assert program.ports == {"smtp": 0, "web": 8025} and program.ready == "web/health?a=1"
    assert topology.environment["MAIL_URL"].startswith("smtp://user:")
    assert loads(to_toml(topology, secrets=True)) == topology


def test_every_placeholder_is_replaced_and_braces_stay() -> None:
    """`{{` and `}}` are single braces; what a value holds is not looked at again."""
    values = {"url": "{python}", "programs.mail.smtp": "25"}
    assert filled("{url}/{programs.mail.smtp}/{{url}}/{{{url}}}", values) == "{python}/25/{url}/{{python}}"


@given(st.text())
def test_doubled_braces_are_the_text_itself(text: str) -> None:
    """Any text can be written."""
    assert filled(text.replace("{", "{{").replace("}", "}}"), {}) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{programs.mial.smtp}",
            "unknown placeholder {programs.mial.smtp}; did you mean {programs.mail.smtp}?",
        ),
        ("{programs.mail.smpt}", "did you mean {programs.mail.smtp}?"),
        ("{secret.key}", "did you mean {secrets.key}?"),
        ("{}", "unknown placeholder {}; known here: {url}, {secrets.key}, {programs.mail.smtp}"),
        ("{state}", "unknown placeholder {state}"),  # of a program only
        ("a { b", "{ stands alone: write {{ for the character itself"),
        ("a } b", "} stands alone: write }} for the character itself"),
        ("{a{url}}", "{ stands alone"),
    ],
)
def test_a_placeholder_that_means_nothing(text: str, expected: str) -> None:
    """It is named with key and line, and the nearest one that is there is suggested."""
    (fault, *_) = faults(f'{MAIL}X = "{text}"\n')
    assert fault.startswith("line 12: environment.X: ") and expected in fault
    if text != "{state}":
        head = "[programs.mail]\nports = { smtp = 0 }\n"
        (fault, *_) = faults(f'{head}command = ["mail",\n"{text}"]\n')
        assert fault.startswith("line 8: programs.mail.command: ") and expected.partition(";")[0] in fault
        (fault, *_) = faults(f'{head}command = ["mail"]\nenvironment = {{ Y = "{text}" }}')
        assert fault.startswith("line 8: programs.mail.environment.Y: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 5: programs.mail.command: is required"),
        ("command = []", "must begin with a program and hold no NUL, got []"),
        ('command = [""]', 'must begin with a program and hold no NUL, got [""]'),
        ("command = 'mail'", "must be a list of strings"),
        ("ports = {}", "; at least 1, got {}"),
        ("ports = ['smtp']", "must be a table of integers"),
        ("ports = { 'a b' = 1 }", "programs.mail.ports.a b: a name must be letters, digits and -"),
        ("ports = { smtp = 'x' }", 'programs.mail.ports.smtp: must be an integer, got "x"'),
        ("ports = { smtp = 70000 }", "programs.mail.ports.smtp: must be between 0 and 65535, got 70000"),
        ("ports = { smtp = 8000 }", "programs.mail.ports.smtp: must differ from servers.port, got 8000"),
        ("ports = { a = 5, b = 5 }", "programs.mail.ports.b: must differ from programs.mail.ports.a, got 5"),
        ("ready = 'smtp'", 'must look like "port/path", got "smtp"'),
        ("ready = 'web/'", 'must begin with one of programs.mail.ports: smtp, got "web/"'),
        ("ready = 'smtp/a b'", 'must look like "port/path"'),
        (
            "environment = { 'A B' = 'x' }",
            "programs.mail.environment.A B: a name must be letters, digits and _",
        ),
        ("environment = { SPRINGTIDE_HOME = 'x' }", "SPRINGTIDE_..., which the runner sets"),
        ("environment = { A = 5 }", "programs.mail.environment.A: must be a string, got 5"),
        ('environment = { A = "a\\u0000b" }', "programs.mail.environment.A: must not hold NUL"),
        (
            'command = ["mail", "a\\u0000b"]',
            "programs.mail.command: must begin with a program and hold no NUL",
        ),
        ("cpu = 0", "programs.mail.cpu: must be > 0, got 0"),
        ("comand = ['x']", "unknown key; did you mean command?"),
    ],
)
def test_one_fault(text: str, expected: str) -> None:
    """Each key has its rule, and the fault names key, rule and value."""
    lines = {"command": "command = ['mail']", "ports": "ports = { smtp = 0 }"}
    lines.pop(text.partition(" ")[0], None)
    if not text:
        del lines["command"]
    (fault,) = faults("\n".join(["[programs.mail]", *lines.values(), text]))
    assert expected in fault


@pytest.mark.parametrize("name", ["db", "app-1", "worker-12", "supervisor", "migrate"])
def test_a_name_that_somebody_else_has(name: str) -> None:
    """Programs share folders and logs with the platform's own parts."""
    (fault,) = faults(f"[programs.{name}]\ncommand = ['x']\nports = {{ a = 0 }}\n")
    assert f"programs.{name}: " in fault


def test_a_fault_of_a_program_does_not_cause_others() -> None:
    """With a port refused, the texts that name it are not faulty too."""
    (fault,) = faults(MAIL.replace("smtp = 0", "smtp = -1").replace('"web/', '"smtp/'))
    assert "ports.smtp: must be between" in fault


def test_secrets_are_named_once() -> None:
    """A list of names."""
    assert "must not be listed twice" in "".join(faults_of('["a", "a"]'))
    assert 'got "a b"' in "".join(faults_of('["a b"]'))


def faults_of(secrets: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        loads(HEAD.replace('["key"]', secrets))
    return [str(fault) for fault in caught.value.faults]


def test_a_secret_in_the_file_is_not_shown() -> None:
    """Under a name that sounds like one, only a placeholder appears; a changed one is told."""
    one = loads(HEAD + MAIL + 'API_KEY = "s3cret1"\nMY_TOKEN = "{secrets.key}"\nPLAIN = "seen"\n')
    two = loads(HEAD + MAIL + 'API_KEY = "s3cret2"\nMY_TOKEN = "{secrets.key}"\nPLAIN = "seen"\n')
    (change,) = diff(one, two)
    shown = f"{change}{to_toml(one)}{to_json(one)}{''.join(map(str, diff(loads(HEAD), one)))}"
    assert str(change).startswith("~ environment.API_KEY: its password or secret changed")
    assert "s3cret" not in shown and 'MY_TOKEN = "{secrets.key}"' in shown and "seen" in shown
    assert "s3cret" not in "".join(faults(MAIL + 'API_KEY = "s3cret{nothing-like-this}"\n'))


def test_a_diff_names_each_entry() -> None:
    """One change per variable and port, not one per table."""
    other = MAIL.replace("web = 8025", "web = 8026").replace("SHOP", "HOME_URL")
    changes = {change.key: change.sign for change in diff(loads(HEAD + MAIL), loads(HEAD + other))}
    assert changes == {
        "programs.mail.ports.web": "~",
        "programs.mail.environment.SHOP": "-",
        "programs.mail.environment.HOME_URL": "+",
    }
