"""The cache layer: values near their readers, that cannot bring old data back.

tiered    `Cache`, and its classes: get, get_many, get_each
classes   what a class is: its keys, its loader, how old its values may get
behind    changes taken durably now and applied a moment later, together

hot       which keys are asked for most
warm      what is loaded before a process is ready
watch     what looks after a running cache; _popular and _report are where it tells what was asked for

_class    a class as its callers have it; a hit in memory is found here
_terms    what may answer one caller
_reading  how a read finds its values
_place    a class on one shard: its slot, its level, its loads
_flight   loads under way, each once for all who want it
_loads    how they are begun; _admission bounds them
_loading  one load: the right to it, the loader (_loader), the way into both levels
_keeping  what is kept, and for how long
_telling  what writes have made stale, told to all processes
_edge     what an answer is told about the values in it
_memory   the first level: this process's memory, bounded in the bytes that values take there (_weight)
_fence    when a loaded value may be kept in the second, and why that is right
_level2   the second level: the values of one class in Redis; lua/ has its scripts
_names    what keys are called there, and what the bus says
_codec    values as bytes
_bus      the listener: one connection per server, for all classes
_session  what a request asks of both, so that it sees its own writes
_slot     what this process has heard of a class's invalidations, and what that proves
_relays   one relay per database cluster (_relay, _leading, _rounds, _rows): it tells what writers could not
"""

from springtide.cache._class import CacheClass
from springtide.cache._keys import Argument
from springtide.cache.classes import EACH, FORBIDDEN, Budget, Definition
from springtide.cache.tiered import Cache
from springtide.provenance import HttpPolicy

__all__ = ["EACH", "FORBIDDEN", "Argument", "Budget", "Cache", "CacheClass", "Definition", "HttpPolicy"]
