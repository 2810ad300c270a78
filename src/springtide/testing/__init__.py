"""What tests need beside real servers: time that they move themselves. Public; never imported by the rest."""

from springtide.testing.clock import ManualClock

__all__ = ["ManualClock"]
