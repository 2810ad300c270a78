"""What tests need beside real servers: time that they move themselves, and the start/stop stress test.

Public; never imported by the rest.
"""

from springtide.testing.clock import ManualClock
from springtide.testing.lifecycle import stress

__all__ = ["ManualClock", "stress"]
