"""Charge once, refund once, and know what became of it.

What is wanted is committed before the provider is asked, under a key made from the order's id; what became
of it is committed with its entries in the ledger. Between the two anything may crash: the outcome then comes
by a webhook, the next call or the reconciliation, and whoever is first settles it. No transaction is open
while the provider is asked. A pending charge is asked for with the same key again, which the provider charges
once; an abandoned one is cancelled there first, so that a request still under way can no longer charge.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

import msgspec

from market.checks import Checks
from market.faults import Conflict, Forbidden, Invalid, NotFound
from market.moments import moment
from market.money import Money
from market.payments import rules
from market.payments.api import Balance, Charge, Reconciled, Refund, Status
from market.payments.client import (
    KeyCancelled,
    OutcomeUnknown,
    ProviderCharge,
    ProviderClient,
    ProviderRefund,
    RefusedByProvider,
)
from market.payments.settings import PaymentSettings
from market.payments.store import ABANDONED, ChargeRow, Due, PaymentStore, RefundRow
from springtide.clock import Clock
from springtide.services import ModuleContext

__all__ = ["RECONCILE_EVERY", "PaymentService", "build", "reconcile"]

_log = logging.getLogger(__name__)

RECONCILE_EVERY = 10.0
"""Seconds between two looks for what is pending too long."""

BATCH = 100
AT_ONCE = 8
MAX_WAIT = 3_600.0
"""How many one reconciliation asks about, how many together, and the longest pause between two questions."""


def build(context: ModuleContext) -> PaymentService:
    settings = context.settings or PaymentSettings()
    client = ProviderClient(settings, clock=context.clock)
    return PaymentService(PaymentStore(context.db), client, settings=settings, clock=context.clock)


async def reconcile(payments: PaymentService) -> None:
    """The worker's periodic work."""
    if payments.configured:
        await payments.reconcile()


class Event(msgspec.Struct, frozen=True):
    id: str
    type: str
    data: msgspec.Raw


class PaymentService:
    """Implements `market.payments.api.Payments`; a lifecycle service because of its client."""

    name = "payments"

    def __init__(
        self, store: PaymentStore, client: ProviderClient, *, settings: PaymentSettings, clock: Clock
    ) -> None:
        self._store = store
        self._client = client
        self._settings = settings
        self._clock = clock

    @property
    def configured(self) -> bool:
        return self._settings.url is not None

    async def start(self) -> None:
        await self._client.start()

    async def stop(self) -> None:
        await self._client.stop()

    async def charge(self, order_id: int, amount: Money, source: str) -> Charge:
        rules.check_charge(order_id, amount, source)
        self._client.ensure_configured()
        known = await self._store.insert_charge(order_id, amount, source, **self._times())
        if known.money != amount:
            raise Conflict("charge", f"is of {known.money}, not of {amount}")
        if known.state == "cancelled" or known.abandoned is not None:
            raise Conflict("charge", "was cancelled")
        if known.state == "declined" and known.source != source:
            await self._store.retry_charge(known, source, **self._times())
            known = await self._must_find(order_id)
        return (await self._resolve(known)).shown()

    async def refund(self, order_id: int, amount: Money, reason: str, key: str | None = None) -> Refund:
        key = reason if key is None else key
        rules.check_refund(order_id, amount, reason, key)
        if key == ABANDONED:
            raise Invalid({"key": ["is taken"]})
        self._client.ensure_configured()
        async with self._store.write(order_id) as tx:
            charge = await self._store.lock_charge(tx, order_id)
            if charge is None:
                raise NotFound("charge")
            known = await self._store.refund_of_key(tx, order_id, key)
            if known is None:
                _check_refundable(charge, amount)
                known = await self._store.insert_refund(tx, order_id, amount, reason, key, **self._times())
            elif known.money != amount:
                raise Conflict("refund", f"is of {known.money}, not of {amount}")
        return (await self._resolve_refund(charge, known)).shown()

    async def cancel(self, order_id: int, reason: str, amount: Money | None = None) -> Charge:
        rules.check_order(order_id, reason, amount)
        if amount is not None:
            await self._store.forbid_charge(order_id, amount, reason, **self._times())
        await self._store.abandon_charge(order_id, reason, **self._times())
        charge = await self._must_find(order_id)
        await self._resolve(charge)
        return (await self._must_find(order_id)).shown()

    async def status(self, order_id: int) -> Status | None:
        charge = await self._store.charge(order_id)
        if charge is None:
            return None
        refunds = await self._store.refunds(order_id) if charge.refunds else []
        return Status(charge=charge.shown(), refunds=[refund.shown() for refund in refunds])

    async def receive(self, body: bytes, signature: str) -> int | None:
        if not rules.genuine(self._settings.secret, body, signature, self._clock.now()):
            raise Forbidden("signature")
        subject: ProviderCharge | ProviderRefund
        try:
            event = msgspec.json.decode(body, type=Event)
            if event.type in ("charge.succeeded", "charge.declined"):
                subject = msgspec.json.decode(event.data, type=ProviderCharge)
            elif event.type == "refund.succeeded":
                subject = msgspec.json.decode(event.data, type=ProviderRefund)
            else:
                return None  # providers add kinds of events; what is not asked for is acknowledged
        except msgspec.MsgspecError as error:
            raise Invalid({"body": [f"is no event: {error}"]}) from error
        named = rules.named(self._settings.prefix, subject.key)
        if named is None or named.refund != isinstance(subject, ProviderRefund):
            raise NotFound("charge")
        await self._receive(event, subject, named)
        return named.order_id

    async def charges(self, order_ids: list[int]) -> list[Charge]:
        rules.check_ids(order_ids)
        return [row.shown() for row in await self._store.charges(order_ids)]

    async def reconcile(self, now: datetime | None = None) -> Reconciled:
        due = await self._store.due(now or moment(self._clock), BATCH)
        slots, reachable, outcomes = asyncio.Semaphore(AT_ONCE), True, list[bool]()

        async def one(item: Due) -> None:
            nonlocal reachable
            async with slots:
                if not reachable:  # nobody answers: the others are as well asked in the next round
                    return
                try:
                    if await self._store.claim(item, self._again(item)):
                        outcomes.append(await self._ask(item))
                except OutcomeUnknown as error:
                    outcomes.append(False)
                    reachable = False
                    _log.warning("the payment provider does not answer: %s", error)

        async with asyncio.TaskGroup() as group:
            for item in due:
                group.create_task(one(item))
        return Reconciled(asked=len(outcomes), settled=sum(outcomes), reachable=reachable)

    async def balances(self) -> list[Balance]:
        return await self._store.balances()

    async def _receive(
        self, event: Event, subject: ProviderCharge | ProviderRefund, named: rules.Named
    ) -> None:
        order, at = named.order_id, moment(self._clock)
        abandoned: ChargeRow | None = None
        async with self._store.write(order) as tx:
            charge = await self._store.lock_charge(tx, order)
            if charge is None:
                raise NotFound("charge")
            if not await self._store.remember_event(tx, order, event.id, event.type, at):
                return
            if isinstance(subject, ProviderRefund):
                refund = await self._store.refund(order, named.number)
                if refund is None:
                    raise NotFound("refund")
                await self._settle_refund(refund, subject)
            elif named.number == charge.attempt:
                abandoned = await self._settle(charge, subject)
            elif named.number > charge.attempt or subject.status == "succeeded":
                raise Conflict("charge", f"of attempt {named.number} cannot be, {charge.attempt} is known")
        if abandoned is not None and abandoned.abandoned is not None:
            await self._give_back(abandoned)

    async def _resolve(self, charge: ChargeRow) -> ChargeRow:
        """Bring a charge as far as it can be brought now; it may still be pending afterwards."""
        if charge.state == "pending":
            try:
                charge = await self._conclude(charge)
            except OutcomeUnknown as error:
                _log.info("the outcome of the charge for order %d is open: %s", charge.order_id, error)
                charge = await self._look(charge)
        if charge.abandoned is not None and charge.state == "succeeded":
            await self._give_back(charge)
        return charge

    async def _conclude(self, charge: ChargeRow) -> ChargeRow:
        """Charge, or cancel what was abandoned. Raises OutcomeUnknown."""
        order, key = charge.order_id, self._key(charge)
        if charge.abandoned is not None:
            made = await self._client.cancel(key)
            if made is None:
                return await self._end(charge, "cancelled")
            return await self._settle(charge, made)
        try:
            made = await self._client.charge(key, charge.money, charge.source)
        except KeyCancelled:
            return await self._end(charge, "cancelled")
        except RefusedByProvider as refusal:
            _log.warning("the provider refused to charge order %d: %s", order, refusal.code)
            return await self._end(charge, "declined", refusal.code)
        return await self._settle(charge, made)

    async def _look(self, charge: ChargeRow) -> ChargeRow:
        """After a call without an outcome: ask once what became of it. Not found means nothing yet."""
        try:
            made = await self._client.find_charge(self._key(charge))
        except (OutcomeUnknown, RefusedByProvider) as error:
            _log.info("nor can it be asked for: %s", error)
            made = None
        return await self._store_or(charge) if made is None else await self._settle(charge, made)

    async def _settle(self, charge: ChargeRow, made: ProviderCharge) -> ChargeRow:
        if (made.key, made.amount, made.currency) != (self._key(charge), charge.amount, charge.currency):
            _log.error("the provider's charge %s is not that of order %d", made.id, charge.order_id)
            raise Conflict("charge", "is another one at the provider")
        return await self._end(charge, made.status, made.decline_code, made.id)

    async def _end(
        self, charge: ChargeRow, state: str, decline_code: str | None = None, provider_id: str | None = None
    ) -> ChargeRow:
        order = charge.order_id
        settled = await self._store.settle_charge(
            order,
            charge.attempt,
            state,  # type: ignore[arg-type]  # one of ChargeState by its callers
            provider_id=provider_id,
            decline_code=decline_code,
            **self._times(),
        )
        if settled is not None:
            return settled
        known = await self._must_find(order)
        if known.attempt == charge.attempt and known.state != state:
            _log.error("the charge of order %d is %s here and %s at the provider", order, known.state, state)
            raise Conflict("charge", f"is {known.state}, and {state} at the provider")
        return known

    async def _give_back(self, charge: ChargeRow) -> None:
        """Ask for the refund that was recorded with the success or the abandonment, whichever was later."""
        refund = await self._store.abandoned_refund(charge.order_id)
        if refund is not None:
            await self._resolve_refund(charge, refund)

    async def _resolve_refund(self, charge: ChargeRow, refund: RefundRow) -> RefundRow:
        if refund.state != "pending":
            return refund
        try:
            return await self._conclude_refund(charge, refund)
        except OutcomeUnknown as error:
            _log.info(
                "the outcome of refund %d of order %d is open: %s", refund.number, refund.order_id, error
            )
            return refund

    async def _conclude_refund(self, charge: ChargeRow, refund: RefundRow) -> RefundRow:
        order, number = refund.order_id, refund.number
        assert charge.provider_id is not None
        key = rules.key_of(self._settings.prefix, order, number, refund=True)
        try:
            made = await self._client.refund(key, charge.provider_id, refund.money)
        except RefusedByProvider as refusal:
            _log.error("the provider refused refund %d of order %d: %s", number, order, refusal.code)
            settled = await self._store.settle_refund(order, number, "failed", at=moment(self._clock))
            return settled or refund
        return await self._settle_refund(refund, made)

    async def _settle_refund(self, refund: RefundRow, made: ProviderRefund) -> RefundRow:
        order, number = refund.order_id, refund.number
        key = rules.key_of(self._settings.prefix, order, number, refund=True)
        if (made.key, made.amount, made.currency) != (key, refund.amount, refund.currency):
            _log.error("the provider's refund %s is not refund %d of order %d", made.id, number, order)
            raise Conflict("refund", "is another one at the provider")
        settled = await self._store.settle_refund(
            order, number, "succeeded", provider_id=made.id, at=moment(self._clock)
        )
        if settled is not None:
            return settled
        return await self._store.refund(order, number) or refund

    async def _ask(self, item: Due) -> bool:
        """One overdue charge or refund; whether it has an outcome now. Raises OutcomeUnknown."""
        charge = await self._must_find(item.order_id)
        try:
            if item.number:
                refund = await self._store.refund(item.order_id, item.number)
                assert refund is not None
                return (await self._conclude_refund(charge, refund)).state != "pending"
            if charge.state == "pending":
                charge = await self._conclude(charge)
            if charge.abandoned is not None and charge.state == "succeeded":
                await self._give_back(charge)
        except Conflict:
            return False  # logged as an error where it was found; it stays pending for a person to look at
        return charge.state != "pending"

    async def _must_find(self, order_id: int) -> ChargeRow:
        charge = await self._store.charge(order_id)
        if charge is None:
            raise NotFound("charge")
        return charge

    async def _store_or(self, charge: ChargeRow) -> ChargeRow:
        """As it is now: a webhook may have settled it meanwhile."""
        return await self._store.charge(charge.order_id) or charge

    def _key(self, charge: ChargeRow) -> str:
        return rules.key_of(self._settings.prefix, charge.order_id, charge.attempt)

    def _times(self) -> dict[str, datetime]:
        at = moment(self._clock)
        return {"at": at, "ask_at": at + timedelta(seconds=self._settings.pending_after)}

    def _again(self, item: Due) -> datetime:
        """Twice as late each time."""
        wait = min(max(self._settings.pending_after, 1.0) * 2.0 ** min(item.asks, 20), MAX_WAIT)
        return moment(self._clock) + timedelta(seconds=wait)


def _check_refundable(charge: ChargeRow, amount: Money) -> None:
    if charge.state != "succeeded":
        raise Conflict("charge", f"is {charge.state}")
    if amount.currency != charge.currency:
        checks = Checks()
        checks.fault("amount", f"must be in {charge.currency}")
        checks.finish()
    left = Money(charge.amount - charge.refunded, charge.currency)
    if amount > left:
        raise Conflict("refund", f"is more than the {left} that are left")
