"""Accounts, profiles and who follows whom. Other modules import `market.users.api` and nothing else."""
