"""Workflows: several steps that are all done, or all undone again, whoever dies in between.

flow      what a workflow is: its steps, what undoes them, what it waits for
control   start one, drive it here, send it an event, cancel it, look at it
upkeep    what became of steps that failed for good; what has ended is forgotten
checking  before a deploy: which flows the code could not go on with

Where a workflow is, is a row beside the module's jobs. Each step is a job of its own kind; what the step
returned, the state after it and the job of the next step are one commit. Nothing is replayed: a step that was
recorded is never run again, and one that was not is run again with the same idempotency key.
"""

from springtide.flows.control import Flows, FlowStatus, StepRecord
from springtide.flows.flow import Moved, Pause, Step, StepRun, WaitFor, Workflow
from springtide.flows.upkeep import FlowUpkeep

__all__ = [
    "FlowStatus",
    "FlowUpkeep",
    "Flows",
    "Moved",
    "Pause",
    "Step",
    "StepRecord",
    "StepRun",
    "WaitFor",
    "Workflow",
]
