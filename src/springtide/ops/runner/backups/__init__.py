"""Physical backups of PostgreSQL servers: base backups, the archived log, restoring to any moment."""
