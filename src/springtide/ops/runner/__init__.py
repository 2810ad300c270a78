"""Run the local processes of a topology: start, watch, restart, adopt, limit and stop them."""
