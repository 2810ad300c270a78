"""Run as a script: take limits upon itself and become another program, which keeps them.

    python -I limited.py <memory bytes> <CPU seconds> <bytes of one file> <program> <argument>...

For programs that read what strangers sent. They also end with the process that started them, leave no core
dumps and take the back seat when others want the CPU. The standard library is all that is needed here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
NICE = 10


def main(memory: str, cpu: str, file: str, *command: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limits = (
        (resource.RLIMIT_AS, int(memory)),
        (resource.RLIMIT_CPU, int(cpu)),
        (resource.RLIMIT_FSIZE, int(file)),
        (resource.RLIMIT_CORE, 0),
    )
    for which, limit in limits:
        resource.setrlimit(which, (limit, limit))
    os.nice(NICE)
    os.execvp(command[0], command)  # noqa: S606 - no shell, and the caller chooses the program


if __name__ == "__main__":
    main(*sys.argv[1:])
