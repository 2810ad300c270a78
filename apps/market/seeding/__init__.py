"""What `market.seed` makes, by area: people, what they write, what they sell and what they buy."""
