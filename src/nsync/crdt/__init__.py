"""Convergent replicated sets and maps over signed logs; knows nothing of Rucio, signatures or networks.

State is a map of slots (key, author); the join keeps the greater sequence number (`slots`). Whether a statement had
seen another is answered by `past`. Sets, maps and registers are readings of the slots (`orset`, `lwwmap`, `mvregister`).
"""

from nsync.crdt.lwwmap import newest
from nsync.crdt.mvregister import maximal
from nsync.crdt.orset import standing
from nsync.crdt.past import Dot, Past
from nsync.crdt.slots import Slot

__all__ = ["Dot", "Past", "Slot", "maximal", "newest", "standing"]
