"""Pictures, short videos and documents. Other modules import `market.media.api` and nothing else."""
