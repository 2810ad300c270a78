"""Articles, comments, favourites, tags, feeds. Other modules import `market.content.api` and nothing else."""
