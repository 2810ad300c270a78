"""Articles, comments, favourites, tags and feeds. Other modules import `market.content.api` and nothing else."""
