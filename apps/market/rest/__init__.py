"""The JSON API under /market: answers composed out of the modules' interfaces, without knowing tables."""
