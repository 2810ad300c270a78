"""Accounts: signing up, in and out; what people change about themselves; their devices."""

from market.storefront.account import devices, face, settings, signing

__all__ = ["PAGES"]

PAGES = (*signing.PAGES, *settings.PAGES, *face.PAGES, *devices.PAGES)
