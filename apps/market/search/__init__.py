"""Full text search over articles, listings and people; others use `api` only."""
