"""The public API satisfies mypy --strict where an application uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.mark.timeout(300)
def test_an_application_that_uses_the_api_type_checks() -> None:
    """Results have the types that the documentation promises; a faulty use is found."""
    assert _mypy(HERE / "use_of_the_api.py") == []
    faults = _mypy(HERE / "misuse_of_the_api.py")
    source = (HERE / "misuse_of_the_api.py").read_text(encoding="utf-8").splitlines()
    expected = [number for number, line in enumerate(source, start=1) if line.endswith("# fault")]
    assert sorted({int(fault.split(":")[1]) for fault in faults}) == expected, "\n".join(faults)


def _mypy(file: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--follow-imports=silent", str(file)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "apps")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]
