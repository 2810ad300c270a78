"""How the provider misbehaves, as its control endpoint sets it; the default is a provider that is well."""

from __future__ import annotations

import os
import random
import signal
from typing import Literal

import msgspec

__all__ = ["Behaviour", "Delay", "Step"]

Step = Literal["before_journal", "after_journal", "after_webhook"]

_chance = random.SystemRandom()


class Delay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds: `fixed` is exactly `seconds`; `uniform` 0 to twice that; `exponential` has that mean."""

    kind: Literal["fixed", "uniform", "exponential"] = "fixed"
    seconds: float = 0.0
    most: float = 60.0

    def draw(self) -> float:
        if self.seconds <= 0:
            return 0.0
        if self.kind == "fixed":
            drawn = self.seconds
        elif self.kind == "uniform":
            drawn = _chance.uniform(0, 2 * self.seconds)
        else:
            drawn = _chance.expovariate(1 / self.seconds)
        return min(drawn, self.most)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    delay              before a request is looked at
    answer_delay       after its effect is journaled, before it is answered
    failure_rate       share of requests that fail with 500 and have no effect
    lost_answer_rate   share of requests that have their effect and answer 500
    declines           card token -> decline code
    deliveries         how often each webhook is sent: 2 answers everything twice
    webhook_first      the webhook is sent, and its answer awaited, before the request is answered
    webhook_delay      seconds between an effect and its webhook
    webhooks_held      no webhook is sent while this holds
    down               every request is answered 503
    die                the process kills itself (SIGKILL) at that step of the next request that has an effect
    """

    delay: Delay = Delay()
    answer_delay: Delay = Delay()
    failure_rate: float = 0.0
    lost_answer_rate: float = 0.0
    declines: dict[str, str] = msgspec.field(
        default_factory=lambda: {"card_declined": "declined", "card_no_funds": "insufficient_funds"}
    )
    deliveries: int = 1
    webhook_first: bool = False
    webhook_delay: float = 0.0
    webhooks_held: bool = False
    down: bool = False
    die: Step | None = None

    def __post_init__(self) -> None:
        for name in ("failure_rate", "lost_answer_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if not 1 <= self.deliveries <= 10:
            raise ValueError(f"deliveries must be 1 to 10, got {self.deliveries}")

    def fails(self) -> bool:
        return _chance.random() < self.failure_rate

    def loses_answer(self) -> bool:
        return _chance.random() < self.lost_answer_rate

    def reach(self, step: Step) -> None:
        if self.die == step:
            os.kill(os.getpid(), signal.SIGKILL)
