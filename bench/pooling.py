"""What PgBouncer costs and saves: see `_pooling`. `python -m bench.pooling [--quick]`."""

from __future__ import annotations

import argparse

import uvloop

from bench._harness import finish
from bench._pooling import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 connections and short rounds")
    finish(uvloop.run(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
