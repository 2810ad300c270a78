"""`python -m market.provider`: run the provider on this machine's loopback address, and nowhere else.

    --port N           0 takes a free one; `listening on http://...` on standard output says which
    --state FILE       its journal, made when missing
    --webhook URL      where events go; without it none are sent

PROVIDER_API_KEY and PROVIDER_WEBHOOK_SECRET must be set: arguments are visible to everybody on the machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import uvicorn

from market.provider.books import Books
from market.provider.http import Provider
from market.provider.journal import Journal

LOOPBACK = "127.0.0.1"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m market.provider")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--webhook")
    args = parser.parse_args()
    secrets = [os.environ.get(name, "") for name in ("PROVIDER_API_KEY", "PROVIDER_WEBHOOK_SECRET")]
    if not all(secrets):
        sys.stderr.write("set PROVIDER_API_KEY and PROVIDER_WEBHOOK_SECRET\n")
        return 2
    journal, books = Journal(args.state), Books()
    for record in journal.open():
        books.apply(record)
    provider = Provider(journal, books, api_key=secrets[0], secret=secrets[1], webhook_url=args.webhook)
    listener = socket.create_server((LOOPBACK, args.port))
    sys.stdout.write(f"listening on http://{LOOPBACK}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(provider.app, log_level="warning", access_log=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])
    journal.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
