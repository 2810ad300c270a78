"""wrk with a script that sends requests from a list, in turn, for so many seconds."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._closed_loop import Call

__all__ = ["Seen", "Wrk"]

SCRIPT = """
local calls = { %s }
local texts, turn = {}, 0

function init(args)
  for place, call in ipairs(calls) do texts[place] = wrk.format("GET", call.path, call.headers) end
end

function request()
  turn = turn %% #texts + 1
  return texts[turn]
end

function done(summary, latency, requests)
  local e, share = summary.errors, 100
  if latency.max >= %d then
    share = 99
    while share > 0 and latency:percentile(share) >= %d do share = share - 1 end
  end
  io.stderr:write(string.format(
    '{"requests":%%d,"duration":%%d,"p95":%%f,"in_time":%%d,"failed":%%d}\\n', summary.requests,
    summary.duration, latency:percentile(95), share, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Seen:
    """Requests per second, the seconds below which 95 of 100 answers came, and the share below `limit`.

    A run in which nothing was answered has rate 0 and an infinite p95.
    """

    rate: float
    p95: float
    in_time: float


class Wrk:
    """`folder` is where its scripts lie while it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, url: str, calls: Sequence[Call], *, connections: int, seconds: float, limit: float) -> Seen:
        """Raises RuntimeError when a request failed or was answered by anything but 2xx or 3xx."""
        late = round(limit * 1e6)
        with tempfile.NamedTemporaryFile("w", suffix=".lua", dir=self._folder) as script:
            script.write(SCRIPT % (",\n".join(map(_lua, calls)), late, late))
            script.flush()
            command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "30s"]
            said = subprocess.run(
                [*command, "-s", script.name, url], capture_output=True, text=True, check=True
            )
        found = json.loads(said.stderr.splitlines()[-1])
        if found["failed"]:
            raise RuntimeError(f"{found['failed']} of {found['requests']} requests failed:\n{said.stdout}")
        if not found["requests"]:
            return Seen(0.0, math.inf, 0.0)
        rate = found["requests"] / found["duration"] * 1e6
        return Seen(rate, found["p95"] / 1e6, found["in_time"] / 100)


def _lua(call: Call) -> str:
    headers = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in call.headers.items())
    return f"{{ path = {json.dumps(call.path)}, headers = {{ {headers} }} }}"
