"""What sellers have sold: by day, by listing, as a report. Others import `market.dashboard.api` only."""
