"""Where the payment provider reports what became of charges and refunds."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.rest.operations import Operation
from market.rest.rim import rest_of

__all__ = ["OPERATIONS"]

SIGNATURE = "provider-signature"


async def receive(request: Request) -> Response:
    """The bytes as they came: the signature is over them. An order that waits for this goes on now."""
    signature, rest = request.headers.get(SIGNATURE, ""), rest_of(request)
    order = await rest.payments.receive(await request.body(), signature)
    if order is not None:
        await rest.orders.payment_known(order)
    return Response(status_code=204)


OPERATIONS = (
    Operation(
        id="receivePaymentEvent",
        method="POST",
        path="/payments/webhook",
        endpoint=receive,
        tag="Payments",
        summary="An event of the payment provider",
        says="For the provider alone, which signs the body in `Provider-Signature`. Anything but 2xx is sent"
        " again later; an event that came before is acknowledged and has no second effect.",
        status=204,
        errors=(403, 404, 409),
    ),
)
