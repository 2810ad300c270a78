"""A mail server for development: it delivers nothing, keeps mails and shows them. A process of its own."""
