"""Who asks, and how it is proven: passwords and signed access tokens. Needs the extra `identity`."""
