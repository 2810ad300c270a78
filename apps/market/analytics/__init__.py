"""What happens in market, counted by day from events. Others import `market.analytics.api` only."""
