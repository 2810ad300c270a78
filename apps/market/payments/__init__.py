"""Charges, refunds and the ledger. Other modules import `market.payments.api` and nothing else."""
