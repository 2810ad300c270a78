"""Measurements against peers: `python -m bench.NAME [--quick]`; the last line is one JSON object."""

import sys
from pathlib import Path

if (APPS := str(Path(__file__).resolve().parent.parent / "apps")) not in sys.path:
    sys.path.insert(0, APPS)  # market is measured as well, and is no installed package
