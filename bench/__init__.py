"""Measurements against peers: `python -m bench.NAME [--quick]`; the last line is one JSON object."""
