"""Shops, listings and their stock; others use `api` only."""
