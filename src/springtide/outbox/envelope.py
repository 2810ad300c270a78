"""What a row of the outbox carries of the request that wrote it.

Trace, request id and causality token travel; the deadline does not, because work that follows a request
outlives it, and neither does the identity: rights are asked for when the work is done, not when it was
ordered. Whoever reads the row makes a context of its own from it.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import msgspec

from springtide.context import LOST, CausalityToken, Priority, RequestContext, current
from springtide.telemetry import tracing

__all__ = ["Envelope"]

_log = logging.getLogger(__name__)


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stored as jsonb, so that operators can read and search it."""

    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    causality: str = ""

    @classmethod
    def capture(cls) -> Envelope:
        """The envelope of the running request; an empty one outside of any."""
        context = current()
        if context is None:
            return cls()
        trace = context.trace
        return cls(
            request_id=context.request_id,
            traceparent=trace.traceparent if trace is not None else "",
            tracestate=trace.state if trace is not None else "",
            causality=context.causality.encode(),
        )

    @classmethod
    def load(cls, stored: Any) -> Envelope:
        """The inverse of `dump`, from jsonb or from its text, which costs less; fields of newer versions are
        ignored. Raises msgspec.MsgspecError."""
        if isinstance(stored, str):
            return _decode(stored) if stored != "{}" else EMPTY
        return msgspec.convert(stored, cls)

    def dump(self) -> dict[str, str]:
        stored: dict[str, str] = msgspec.to_builtins(self)
        return stored

    def open(
        self, *, deadline: float | None = None, priority: Priority = Priority.NORMAL, attempt: int = 1
    ) -> RequestContext:
        """A new context that continues the trace with a span of its own. `deadline` is monotonic."""
        try:
            causality = CausalityToken.decode(self.causality)
        except ValueError:
            _log.warning("an envelope's causality token %r cannot be read", self.causality)
            causality = CausalityToken.decode(LOST)
        return RequestContext(
            request_id=self.request_id or f"{random.getrandbits(64):016x}",
            deadline=deadline,
            priority=priority,
            trace=tracing.join(self.traceparent or None, self.tracestate or None),
            attempt=attempt,
            causality=causality,
        )


EMPTY = Envelope()
_decode = msgspec.json.Decoder(Envelope).decode
