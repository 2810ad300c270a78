"""The picture that somebody gives of themselves.

An account has an address for it, which leads to the small variant once a job has made it, and to initials
before: so it can be shown from the first moment on, and the address of the account never changes again.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from market.faults import Invalid, NotFound
from market.storefront.account.settings import account_of, settings_page
from market.storefront.forms import submitted
from market.storefront.pictures import avatar
from market.storefront.rendering import redirect
from market.storefront.rim import store_of
from market.storefront.table import Page, number
from market.storefront.uploads import from_a_page, uploaded
from market.users.api import FACES, AccountChanges
from springtide.errors import BodyTooLarge

__all__ = ["PAGES"]

KEPT = "public, max-age=86400"
SOON = "no-cache"


async def face(request: Request) -> Response:
    id = number(request)
    if id is None:
        raise NotFound("picture")
    address = (await store_of(request).media.urls([id], "thumb")).get(id)
    if address is not None:
        return RedirectResponse(address, 302, {"Cache-Control": KEPT})
    drawing = avatar("?").replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return Response(drawing, 200, {"Cache-Control": SOON}, media_type="image/svg+xml")


async def give(request: Request) -> Response:
    await from_a_page(request)
    account = await account_of(request)
    store = store_of(request)
    try:
        async with uploaded(request) as (owner, upload):
            medium = await store.media.store(owner, upload.name, upload.content, "public", upload.once)
            if medium.kind != "image":
                raise Invalid({"file": ["must be a picture"]})
    except Invalid as refused:
        return await settings_page(request, account, 422, errors=refused.errors)
    except BodyTooLarge as error:
        errors = {"file": [f"is too large: {error.limit // (1024 * 1024)} MiB at most"]}
        return await settings_page(request, account, 413, errors=errors)
    return await _keep(request, owner, f"{FACES}{medium.id}")


async def remove(request: Request) -> Response:
    await submitted(request)
    account = await account_of(request)
    return await _keep(request, account.id, None)


async def _keep(request: Request, person: int, image: str | None) -> Response:
    await store_of(request).users.update(person, AccountChanges(image=image))
    return redirect(request, "/account", done="saved")


PAGES = (
    Page("GET", "/faces/{id}", face),
    Page("POST", "/account/face", give),
    Page("POST", "/account/face/remove", remove),
)
