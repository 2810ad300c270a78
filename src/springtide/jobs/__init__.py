"""Jobs: work with one owner, ordered in a transaction and done afterwards, at least once.

job       what a job is, and who handles it
enqueue   into the caller's write transaction, one or many
results   what became of one job
pressure  keeps producers back when a queue is behind
worker    claims, leases, retries, dead letters, drain
schedule  what is enqueued by the clock, and when
scheduler each slot of a schedule once, over all processes

A job exists if and only if the transaction that enqueued it committed. It is run until a run succeeds or its
attempts are used up; then it is a dead letter, kept and visible. With effect="transactional" the effect and
the end of the job are one commit; any other effect may happen twice and gets a stable key for that.
"""

from springtide.jobs.enqueue import Enqueuer, enqueue, enqueue_many
from springtide.jobs.job import Effect, Handler, JobKind, Run, Upcast, job, kind_of
from springtide.jobs.results import JobStatus, look, result
from springtide.jobs.schedule import CatchUp, Schedule
from springtide.jobs.scheduler import Scheduled, Scheduler, scheduled
from springtide.jobs.worker import Queue, Worker

__all__ = [
    "CatchUp",
    "Effect",
    "Enqueuer",
    "Handler",
    "JobKind",
    "JobStatus",
    "Queue",
    "Run",
    "Schedule",
    "Scheduled",
    "Scheduler",
    "Upcast",
    "Worker",
    "enqueue",
    "enqueue_many",
    "job",
    "kind_of",
    "look",
    "result",
    "scheduled",
]
