"""What pages hear while they are open: how many notices are unread, as server-sent events."""
