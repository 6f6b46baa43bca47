"""Slots: the one way in which state changes (R3.3).

Slot (key, author) holds that author's effective statement with the greatest seq. Nobody writes another's slot, so the
join is a maximum: commutative, associative and idempotent by inspection, and no clock can wedge it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nsync.clock import Stamp
from nsync.crdt.past import Dot


class Slot(NamedTuple):
    """One author's statement about one key: `Assert(value)`, or `Retract` when `retract` is set (value is then None)."""

    dot: Dot
    stamp: Stamp
    retract: bool
    value: Any

    @property
    def order(self) -> tuple[Stamp, bytes, int]:
        """The total order of statements: (stamp, author, seq)."""
        return (self.stamp, self.dot.author, self.dot.seq)
