"""Slots: the one way in which state changes (R3.3).

Slot (key, author) holds that author's effective statement with the greatest seq. Nobody writes another's slot, so the
join is a maximum: commutative, associative and idempotent by inspection, and no clock can wedge it.
"""

from __future__ import annotations

from collections.abc import Hashable
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


class Slots:
    """The slots of all keys, in memory: the reference that the SQL store is held against."""

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[bytes, Slot]] = {}

    def join(self, key: Hashable, slot: Slot) -> bool:
        """Take in a statement; tells whether the state changed."""
        slots = self._of.setdefault(key, {})
        held = slots.get(slot.dot.author)
        if held is not None and held.dot.seq >= slot.dot.seq:
            return False
        slots[slot.dot.author] = slot
        return True

    def of(self, key: Hashable) -> list[Slot]:
        """Every author's slot for `key`, in the order of authors."""
        return [slot for _, slot in sorted(self._of.get(key, {}).items())]

    def keys(self) -> set[Hashable]:
        """Every key about which somebody made a statement."""
        return set(self._of)
