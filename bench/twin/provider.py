"""The payment provider's HTTP API, by httpx: an answer, or `Unknown` when nobody can tell what happened."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from bench.twin.settings import Settings

__all__ = ["Charge", "Provider", "Unknown"]

T = TypeVar("T", bound=BaseModel)


class Unknown(Exception):
    """It may have been done or not."""


class Charge(BaseModel):
    """`cancelled`: the key is dead, and nothing was charged or ever will be by it."""

    status: Literal["succeeded", "declined", "cancelled"]
    id: str | None = None
    amount: int | None = None
    decline_code: str | None = None


class _Cancelled(BaseModel):
    charge: Charge | None


class Provider:
    def __init__(self, settings: Settings) -> None:
        self._http = httpx.AsyncClient(
            base_url=settings.provider_url,
            headers={"Authorization": f"Bearer {settings.provider_key}"},
            timeout=httpx.Timeout(10.0, connect=2.0),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=32),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def charge(self, key: str, amount: int, currency: str, source: str) -> Charge:
        """Once per key, however often it is asked for. Raises Unknown."""
        body = {"amount": amount, "currency": currency, "source": source}
        answer = await self._post("/charges", body, {"Idempotency-Key": key})
        if answer.status_code in (409, 422):
            code = answer.json().get("code", "refused")
            return Charge(status="cancelled" if code == "key_cancelled" else "declined", decline_code=code)
        return _read(answer, Charge)

    async def cancel(self, key: str) -> Charge:
        """What was charged, or a key that is dead from now on. Raises Unknown."""
        found = _read(await self._post("/cancellations", {"key": key}, {}), _Cancelled).charge
        return found or Charge(status="cancelled")

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        try:
            return await self._http.post(path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise Unknown(repr(error)) from error


def _read(answer: httpx.Response, shape: type[T]) -> T:
    if answer.status_code not in (200, 201):
        raise Unknown(f"the provider answered {answer.status_code}")
    try:
        return shape.model_validate_json(answer.content)
    except ValidationError as error:
        raise Unknown(str(error)) from error
