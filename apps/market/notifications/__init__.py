"""Inbox, mail and push. Other modules import `market.notifications.api` and nothing else."""
