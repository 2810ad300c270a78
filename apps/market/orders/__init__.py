"""Carts, orders and sales. Other modules import `market.orders.api` and nothing else."""
