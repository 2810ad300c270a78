"""What people may like: also-bought listings and authors to follow. Others import its `api` alone."""
