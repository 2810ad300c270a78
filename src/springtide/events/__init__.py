"""Events: facts for whoever wants to know, appended in a transaction and handled by groups, each in its time.

event      what an event is
publish    into the caller's write transaction, one or many
group      who handles events, and from where on
worker     numbers the log, gives lanes to handlers, keeps and drops days
operating  what operators see and do: positions, lag, replay, dead letters

An event exists if and only if the transaction that published it committed. Each group gets every event of
its kinds, those of one key in order, at least once; with effect="transactional" the effect and the group's
step past the event are one commit. Groups know nothing of each other; a new one begins where it says, and any
can be set back to handle again what is kept.
"""

from springtide.events.event import EventKind, event, kind_of
from springtide.events.group import Delivery, Effect, Group, On, Start
from springtide.events.publish import Publisher, publish, publish_many
from springtide.events.worker import EventWorker, Subscription
from springtide.outbox.kinds import Upcast

__all__ = [
    "Delivery",
    "Effect",
    "EventKind",
    "EventWorker",
    "Group",
    "On",
    "Publisher",
    "Start",
    "Subscription",
    "Upcast",
    "event",
    "kind_of",
    "publish",
    "publish_many",
]
