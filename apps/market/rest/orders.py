"""Carts, orders and sales under /market."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.money import Money
from market.orders import api as orders
from market.rest.answers import answer, created, read
from market.rest.bodies import id_of, once, read_body, window
from market.rest.operations import PREFIX, Operation
from market.rest.rim import member, rest_of, somebody
from springtide.errors import IdempotencyKeyInvalid

__all__ = ["OPERATIONS"]

CART, ORDERS, SALES = "Cart", "Orders", "Sales"


class Quantity(msgspec.Struct, frozen=True):
    """How many are wanted, 0 for none; `price` is that of one item as you have seen it."""

    quantity: int
    price: Money | None = None


async def get_cart(request: Request) -> Response:
    cart = await rest_of(request).orders.cart(somebody(request))
    return read(request, cart, version=cart.version, private=True)


async def put_line(request: Request) -> Response:
    somebody(request)
    id = id_of(request, "listing")
    body = await read_body(request, Quantity)
    cart = await rest_of(request).orders.put(await member(request), id, body.quantity, body.price)
    return answer(cart, version=cart.version)


async def place(request: Request) -> Response:
    somebody(request)
    new = await read_body(request, orders.NewOrder)
    asked = await once(request)
    if asked is None:
        raise IdempotencyKeyInvalid("an order needs an Idempotency-Key header, so that it is placed once")
    order = await rest_of(request).orders.place(await member(request), new, asked)
    return created(order, f"{PREFIX}/orders/{order.id}", version=order.version)


async def get_orders(request: Request) -> Response:
    viewer = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).orders.history(viewer, limit, after), private=True)


async def get_order(request: Request) -> Response:
    viewer = somebody(request)
    order = await rest_of(request).orders.order(id_of(request, "order"), viewer)
    return read(request, order, version=order.version, private=True)


async def cancel(request: Request) -> Response:
    viewer = somebody(request)
    order = await rest_of(request).orders.cancel(id_of(request, "order"), viewer, await once(request))
    return answer(order, version=order.version)


async def get_sales(request: Request) -> Response:
    viewer = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).orders.sales(viewer, limit, after), private=True)


async def ship(request: Request) -> Response:
    viewer = somebody(request)
    sale = await rest_of(request).orders.ship(id_of(request, "order"), viewer, await once(request))
    return answer(sale, version=sale.version)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetCart", method="GET", path="/cart", endpoint=get_cart, tag=CART, summary="Your cart",
        says="Each line has the price that you have seen and what is true now; `change` is the difference.",
        auth="required", answer=orders.Cart, errors=(401,), conditional=True,
    ),
    Operation(
        id="PutCartLine", method="PUT", path="/cart/{id}", endpoint=put_line, tag=CART,
        summary="So many of a listing are in your cart from now on", auth="required", body=Quantity,
        answer=orders.Cart, errors=(401, 404, 409),
        says="Happens once however often it is sent; 0 takes the listing out. Without `price` the present one"
        " is what you have seen. A cart has one currency (409).",
    ),
    Operation(
        id="PlaceOrder", method="POST", path="/orders", endpoint=place, tag=ORDERS, summary="Place an order",
        says="Needs an Idempotency-Key (400 without). Of `lines`, or of the cart in the version that you have"
        " seen (412 if it has changed); one version of a cart makes one order. Answered with the `state` that"
        " was reached: `confirmed`, `failed` with its `reason`, or `placing` or `awaiting_payment`, which go"
        " on by themselves. Sent again, it is the same order as it is by then.",
        auth="required", body=orders.NewOrder, answer=orders.Order, status=201, errors=(401, 412),
        idempotent=True,
    ),
    Operation(
        id="GetOrders", method="GET", path="/orders", endpoint=get_orders, tag=ORDERS,
        summary="Your orders, newest first", auth="required", answer=orders.OrderPage, errors=(401,),
        conditional=True, listed=True,
    ),
    Operation(
        id="GetOrder", method="GET", path="/orders/{id}", endpoint=get_order, tag=ORDERS, summary="An order",
        says="For its buyer, and with their own lines for its sellers.", auth="required",
        answer=orders.Order, errors=(401, 404), conditional=True,
    ),
    Operation(
        id="CancelOrder", method="POST", path="/orders/{id}/cancel", endpoint=cancel, tag=ORDERS,
        summary="Cancel your order", auth="required", answer=orders.Order, errors=(401, 404, 409),
        idempotent=True,
        says="Until a part of it is shipped (409). What was paid is given back, what was sold can be bought.",
    ),
    Operation(
        id="GetSales", method="GET", path="/sales", endpoint=get_sales, tag=SALES,
        summary="What you have sold, newest first", auth="required", answer=orders.SalePage, errors=(401,),
        conditional=True, listed=True, says="A sale appears a moment after its order is confirmed.",
    ),
    Operation(
        id="ShipSale", method="POST", path="/sales/{id}/ship", endpoint=ship, tag=SALES,
        summary="Your lines of an order are on their way", auth="required", answer=orders.Sale,
        errors=(401, 404, 409), idempotent=True, says="The order cannot be cancelled any more.",
    ),
)  # fmt: skip
