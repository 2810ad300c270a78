"""A seller's endpoints under /market/webhooks, and what became of the messages to them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid
from market.rest.answers import answer, created, read, wanted_version
from market.rest.bodies import id_of, once, read_body, window
from market.rest.operations import PREFIX, Operation
from market.rest.rim import member, rest_of, somebody
from market.webhooks import api as webhooks

__all__ = ["OPERATIONS", "TOLD"]

TAG = "Webhooks"

TOLD: Mapping[str, type[webhooks.SoldOrder | webhooks.TurnedListing]] = {
    name: webhooks.SoldOrder if name.startswith("order.") else webhooks.TurnedListing
    for name in webhooks.EVENT_TYPES
}
"""What the data of each type of message is."""


async def register(request: Request) -> Response:
    somebody(request)
    new = await read_body(request, webhooks.NewEndpoint)
    seller = await member(request)
    made = await rest_of(request).webhooks.register(seller, new, await once(request))
    return _secret(created(made, f"{PREFIX}/webhooks/{made.endpoint.id}", version=made.endpoint.version))


async def get_endpoints(request: Request) -> Response:
    seller = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).webhooks.endpoints(seller, limit, after), private=True)


async def get_endpoint(request: Request) -> Response:
    seller = somebody(request)
    endpoint = await rest_of(request).webhooks.endpoint(seller, id_of(request, "webhook"))
    return read(request, endpoint, version=endpoint.version, private=True)


async def change(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "webhook")
    version = wanted_version(request, "webhook")
    changes = await read_body(request, webhooks.EndpointChanges)
    if all(value is UNSET for value in (changes.url, changes.events, changes.enabled)):
        raise Invalid({"body": ["changes nothing"]})
    endpoint = await rest_of(request).webhooks.change(seller, id, changes, version, await once(request))
    return answer(endpoint, version=endpoint.version)


async def delete(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "webhook")
    await rest_of(request).webhooks.delete(seller, id, await once(request))
    return Response(status_code=204)


async def rotate(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "webhook")
    return _secret(answer(await rest_of(request).webhooks.rotate(seller, id, await once(request)), 201))


async def test(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "webhook")
    return answer(await rest_of(request).webhooks.test(seller, id, await once(request)), 201)


async def get_messages(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "webhook")
    limit, after = window(request)
    return read(request, await rest_of(request).webhooks.messages(seller, id, limit, after), private=True)


async def send_again(request: Request) -> Response:
    seller, id = somebody(request), id_of(request, "message")
    return answer(await rest_of(request).webhooks.send_again(seller, id, await once(request)))


def _secret(response: Response) -> Response:
    """No cache keeps it."""
    response.headers["Cache-Control"] = "no-store"
    return response


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="RegisterWebhook", method="POST", path="/webhooks", endpoint=register, tag=TAG,
        summary="Have a program of yours told what happens in your shop", auth="required",
        body=webhooks.NewEndpoint, answer=webhooks.Registered, status=201, errors=(401, 409), idempotent=True,
        says="Messages are signed as Standard Webhooks has it, with the secret that is shown here and never"
        f" again. At most {webhooks.MAX_ENDPOINTS} (409). What they say is under `webhooks` in the document.",
    ),
    Operation(
        id="GetWebhooks", method="GET", path="/webhooks", endpoint=get_endpoints, tag=TAG,
        summary="Your webhooks, newest first", auth="required", answer=webhooks.EndpointPage, errors=(401,),
        conditional=True, listed=True,
    ),
    Operation(
        id="GetWebhook", method="GET", path="/webhooks/{id}", endpoint=get_endpoint, tag=TAG,
        summary="A webhook", auth="required", answer=webhooks.Endpoint, errors=(401, 404), conditional=True,
    ),
    Operation(
        id="ChangeWebhook", method="PATCH", path="/webhooks/{id}", endpoint=change, tag=TAG,
        summary="Change its address or types, disable or enable it", auth="required",
        body=webhooks.EndpointChanges, answer=webhooks.Endpoint, errors=(401, 404), conditional=True,
        idempotent=True, says="What is left out stays.",
    ),
    Operation(
        id="DeleteWebhook", method="DELETE", path="/webhooks/{id}", endpoint=delete, tag=TAG,
        summary="Delete a webhook and its messages", auth="required", status=204, errors=(401, 404),
        idempotent=True,
    ),
    Operation(
        id="RotateWebhookSecret", method="POST", path="/webhooks/{id}/secret", endpoint=rotate, tag=TAG,
        summary="Another secret", auth="required", answer=webhooks.Secret, status=201, errors=(401, 404),
        idempotent=True,
        says=f"For {webhooks.OVERLAP_HOURS} hours messages are signed with the one before, too.",
    ),
    Operation(
        id="TestWebhook", method="POST", path="/webhooks/{id}/test", endpoint=test, tag=TAG,
        summary="Send it a message that says nothing", auth="required", answer=webhooks.Message, status=201,
        errors=(401, 404, 409), idempotent=True,
        says=f"409 while it is disabled, or {webhooks.MAX_QUEUED} messages wait for it.",
    ),
    Operation(
        id="GetWebhookMessages", method="GET", path="/webhooks/{id}/messages", endpoint=get_messages, tag=TAG,
        summary="What was sent to a webhook, newest first", auth="required", answer=webhooks.MessagePage,
        errors=(401, 404), conditional=True, listed=True,
        says=f"Kept for {webhooks.KEPT_DAYS} days. What the endpoint answered but the status is not.",
    ),
    Operation(
        id="SendWebhookMessageAgain", method="POST", path="/webhooks/messages/{id}/again",
        endpoint=send_again, tag=TAG, summary="Send a message again", auth="required",
        answer=webhooks.Message, errors=(401, 404, 409), idempotent=True,
        says="Under the same id. 409 while it is queued, or its webhook disabled.",
    ),
)  # fmt: skip
