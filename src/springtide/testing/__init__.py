"""What tests need beside real servers.

`ManualClock` is time that the test moves, `stress` the start/stop stress test of any service, and
`StatementGuard` holds every statement of a module to its own schema; `faults` breaks the wire, `history`
judges what clients saw meanwhile. Public; never imported by the rest.
"""

from springtide.testing.clock import ManualClock
from springtide.testing.lifecycle import stress
from springtide.testing.statements import StatementGuard

__all__ = ["ManualClock", "StatementGuard", "stress"]
