"""Jobs: work with one owner, ordered in a transaction and done afterwards, at least once.

job       what a job is, and who handles it
enqueue   into the caller's write transaction, one or many
results   what became of one job
worker    claims, leases, retries, dead letters, drain

A job exists if and only if the transaction that enqueued it committed. It is run until a run succeeds or its
attempts are used up; then it is a dead letter, kept and visible. With effect="transactional" the effect and
the end of the job are one commit; any other effect may happen twice and gets a stable key for that.
"""

from springtide.jobs.enqueue import Enqueuer, enqueue, enqueue_many
from springtide.jobs.job import Effect, Handler, JobKind, Run, Upcast, job, kind_of
from springtide.jobs.results import JobStatus, look, result
from springtide.jobs.worker import Queue, Worker

__all__ = [
    "Effect",
    "Enqueuer",
    "Handler",
    "JobKind",
    "JobStatus",
    "Queue",
    "Run",
    "Upcast",
    "Worker",
    "enqueue",
    "enqueue_many",
    "job",
    "kind_of",
    "look",
    "result",
]
