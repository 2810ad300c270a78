"""`springtide new`: the application that it writes runs, and its own tests pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.integration._platforms import Project, project

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.new.project import write_project


def test_the_application_works_from_new_to_down() -> None:
    """new, up, the page, the API, its own tests while it runs, down."""
    with project() as outside:
        assert "cd guest_book" in outside.run("new", "guest_book")
        made = Project(outside.folder / "guest_book")
        try:
            made.run("up", "--detach", "--port", "0")
            url = made.status()["url"]
            body = json.dumps({"text": "a <b>"}).encode()
            request = urllib.request.Request(
                f"{url}/api/notes", data=body, headers={"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 201
            assert "<li>a &lt;b&gt;</li>" in made.get("/")
            assert json.loads(made.get("/api/notes"))[0]["text"] == "a <b>"
            assert made.get("/health/ready")
            assert {node["kind"] for node in made.status()["nodes"]} == {"postgres", "app", "worker"}
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
                cwd=made.folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout
        finally:
            made.run("down")
        assert made.leftovers() == []


def test_data_survives_a_restart() -> None:
    """What was written is there after down and up."""
    with project() as outside:
        outside.run("new", "guests")
        made = Project(outside.folder / "guests")
        try:
            made.run("up", "-d", "--port", "0")
            data = urllib.request.Request(f"{made.status()['url']}/", data=b"text=kept")
            urllib.request.urlopen(data, timeout=10).close()
            made.run("down")
            made.run("up", "-d", "--port", "0")
            assert "<li>kept</li>" in made.get("/")
        finally:
            made.run("down")


@pytest.mark.parametrize(
    "name",
    ["", "Upper", "1st", "a-b", "a b", "../up", "class", "json", "springtide", "tests", "x_", "é", "a" * 41],
)
def test_names_that_cannot_be_packages_are_refused(tmp_path: Path, name: str) -> None:
    """The name is shown, and nothing is written."""
    with pytest.raises(ConfigurationError) as error:
        write_project(name, tmp_path)
    assert repr(name) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder, file or link of that name stays as it is."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("shop", "file", "link"):
        with pytest.raises(ConfigurationError, match="exists already"):
            write_project(name, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "shop"]
    assert list((tmp_path / "shop").iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """The folder is named, with the reason."""
    with pytest.raises(RunnerError, match=r"cannot write .*nowhere/shop: No such file"):
        write_project("shop", tmp_path / "nowhere")


def test_every_file_is_there_and_no_placeholder_is_left(tmp_path: Path) -> None:
    """What belongs to a first project is written, hidden files too, readable for all who may enter."""
    files = {str(p.relative_to(tmp_path / "my_shop")): p for p in write_project("my_shop", tmp_path)}
    assert {"springtide.toml", ".gitignore", "README.md", "my_shop/asgi.py", "tests/test_notes.py"} <= set(
        files
    )
    assert not any(
        "@" in path.read_text().replace("@app.", "").replace("@pytest", "") for path in files.values()
    )
    assert 'name = "my-shop"' in files["springtide.toml"].read_text()
    assert os.stat(tmp_path / "my_shop").st_mode & 0o777 == 0o755
