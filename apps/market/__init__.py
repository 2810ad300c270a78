"""market: a marketplace with a community, the reference application of Springtide."""
