"""Jobs satisfy mypy --strict where an application uses them."""

from __future__ import annotations

import pytest
from tests.typing.test_typing import HERE, _mypy


@pytest.mark.timeout(300)
def test_an_application_with_jobs_type_checks() -> None:
    """A handler that takes another job than it is listed for is found, as other faulty uses are."""
    assert _mypy(HERE / "use_of_jobs.py") == []
    faults = _mypy(HERE / "misuse_of_jobs.py")
    source = (HERE / "misuse_of_jobs.py").read_text(encoding="utf-8").splitlines()
    expected = [number for number, line in enumerate(source, start=1) if line.endswith("# fault")]
    assert sorted({int(fault.split(":")[1]) for fault in faults}) == expected, "\n".join(faults)
