"""`python -m market.mailbox`: run the mailbox on this machine's loopback address, and nowhere else.

    --smtp-port N      where mail is received; 0 takes a free one
    --http-port N      where it is shown; 0 takes a free one
    --state FOLDER     the mails, made when missing
    --keep N           how many are kept, 500 unless told; never more than 100 MB

Once both ports are taken it says `listening on smtp://... and http://...` on standard output. SIGTERM
ends it.
MAILBOX_LOGIN=user:password in the environment takes mail only from those who sign in so.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import warnings
from pathlib import Path

import uvicorn

from market.mailbox.http import Mailbox
from market.mailbox.keeping import Mails
from market.mailbox.receiving import Receiver

LOOPBACK = "127.0.0.1"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m market.mailbox")
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--keep", type=int, default=500)
    args = parser.parse_args()
    if args.keep < 1:
        parser.error(f"--keep must be >= 1, got {args.keep}")
    # That a password is taken without TLS is meant so: nothing leaves this machine.
    warnings.filterwarnings("ignore", module="aiosmtpd")
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    mails = Mails(args.state, max_mails=args.keep)
    mails.open()
    receiver = Receiver(mails, LOOPBACK, args.smtp_port, login=os.environ.get("MAILBOX_LOGIN") or None)
    listener = socket.create_server((LOOPBACK, args.http_port))
    shown = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    sys.stdout.write(f"listening on smtp://{LOOPBACK}:{receiver.port} and {shown}\n")
    sys.stdout.flush()
    app = Mailbox(mails, receiver).app
    config = uvicorn.Config(app, loop="asyncio", log_level="warning", access_log=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
