"""Write the template under a name.

Every file of `template/` ends in `.in`; `@NAME@` in paths and texts becomes the package's name, `@PLATFORM@`
the platform's (- instead of _), and `dot-` before a file's name a dot (package data skips hidden files). The
folder appears complete or not at all.
"""

from __future__ import annotations

import keyword
import re
import shutil
import sys
import tempfile
from pathlib import Path

from springtide.errors import ConfigurationError, RunnerError

__all__ = ["write_project"]

TEMPLATE = Path(__file__).parent / "template"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
TAKEN = frozenset({"springtide", "tests", "test", "pytest", "fastapi", "starlette", "msgspec", "pydantic"})


def write_project(name: str, folder: Path) -> list[Path]:
    """Write a new project to `folder`/`name`; its files, sorted.

    Raises ConfigurationError for a name that cannot be used, or that exists; RunnerError when the folder
    cannot be written.
    """
    if not NAME.fullmatch(name) or name.endswith("_"):
        raise ConfigurationError(
            "a name must be lower-case letters, digits and _, at most 40, a letter first and no _ last,"
            f" got {name!r}"
        )
    if keyword.iskeyword(name) or name in sys.stdlib_module_names or name in TAKEN:
        raise ConfigurationError(f"{name!r} is taken by Python or by a package that the application needs")
    target = folder / name
    if target.exists() or target.is_symlink():
        raise ConfigurationError(f"{target} exists already; nothing was changed")
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        try:
            _fill(staging, name)
            staging.chmod(0o755)
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except OSError as error:
        raise RunnerError(f"cannot write {target}: {error.strerror}") from error
    return sorted(path for path in target.rglob("*") if path.is_file())


def _fill(target: Path, name: str) -> None:
    for source in sorted(TEMPLATE.rglob("*.in")):
        relative = str(source.relative_to(TEMPLATE)).removesuffix(".in").replace("@NAME@", name)
        path = target / re.sub(r"(^|/)dot-", r"\1.", relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text().replace("@NAME@", name).replace("@PLATFORM@", name.replace("_", "-"))
        path.write_text(text)
