"""The sentences that a page shows after something was done, by the name that its address carries.

An address can name one of these and nothing else, so a link from elsewhere cannot make a page say things.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SAID"]

SAID: Mapping[str, str] = {
    "welcome": "Your account is ready. Welcome!",
    "signed-in": "You are signed in.",
    "signed-out": "You are signed out.",
    "saved": "Your changes are saved.",
    "password": "Your sign-in details are saved. Other devices are signed out.",
    "revoked": "That device is signed out.",
    "revoked-all": "All other devices are signed out.",
    "published": "Your article is published.",
    "article-saved": "Your article is saved.",
    "article-deleted": "Your article is deleted.",
    "commented": "Your comment is posted.",
    "comment-deleted": "Your comment is deleted.",
    "shop-opened": "Your shop is open. Now add what you sell.",
    "listing-created": "Your listing is saved.",
    "listing-saved": "Your listing is saved.",
    "listing-active": "Your listing is on sale.",
    "listing-withdrawn": "Your listing is taken off sale.",
    "stock": "The stock is changed.",
    "in-cart": "It is in your cart.",
    "cart-changed": "Your cart is changed.",
    "cart-stale": "Your cart has changed since you looked. Nothing is ordered; here it is as it is now.",
    "cart-empty": "There is nothing in your cart. What you have ordered is under Your orders.",
    "placing": "Your order is being placed. It appears here in a moment.",
    "read": "Everything is read.",
    "preferences": "Your choice is saved.",
    "push-on": "This device tells you from now on.",
    "push-off": "This device tells you nothing any more.",
    "shipped": "The buyer is told that it is on its way.",
    "report": "Your report is being made. It appears below when it is ready.",
    "photo": "Your file is here. It is being prepared and appears in a moment.",
    "photo-removed": "It is taken off the listing.",
}
