"""Which statements count (DESIGN 5, R3.1, R3.4, R5.6).

A statement about a scope counts when its author's instance is the scope's home or the home's guest. Rse and Replica statements
are made only by the instance in the key. A guest's destructive or publishing statement counts only once it is settled:
in the past of a segment of the home. All of it is a function of charter and pasts, never of arrival.
"""

from __future__ import annotations

from typing import Optional

from nsync.authority.charter import AuthorId, Charter
from nsync.crdt.past import Dot, Past
from nsync.crdt.slots import Slot
from nsync.namespace import keys
from nsync.namespace.keys import Attribute, Key, Replica, Rse, fact_of, scope_of
from nsync.namespace.ops import Retract, Statement


class Authority:
    """The charter, asked about statements."""

    def __init__(self, charter: Charter) -> None:
        self.charter = charter

    def may_write(self, author: bytes, key: Key) -> bool:
        """Whether statements of `author` about `key` can count at all."""
        instance, fact, scope = self.charter.by_author(author), fact_of(key), scope_of(key)
        if instance is None:
            return False
        rse = fact.rse if isinstance(fact, Replica) else fact if isinstance(fact, Rse) else None
        if rse is not None and rse.instance != instance.name:
            return False
        return scope is None or self.charter.may_write(instance, scope)

    def waits_for_home(self, author: bytes, statement: Statement) -> bool:
        """Whether it counts only once its scope's home has acknowledged it: a guest's retract, close or publication (R5.6)."""
        if self.decider(statement.key) in (None, author):
            return False
        if isinstance(statement, Retract):
            return True
        field = statement.key.field if isinstance(statement.key, Attribute) else None
        return (field, statement.value) in ((keys.CLOSED, True), (keys.OPENDATA, keys.PUBLIC))

    def decider(self, key: Key) -> Optional[AuthorId]:
        """The author whose log settles statements about `key`; None where only one author can make any."""
        scope = scope_of(key)
        home = self.charter.home(scope) if scope is not None else None
        return home.author if home is not None else None

    def silences(self, key: Key) -> Silencer:
        """Who silences whom: the home everyone, a guest its own instance only (R3.4)."""
        return Silencer(self.decider(key))

    def name(self, author: bytes) -> str:
        """The name of `author`'s instance."""
        instance = self.charter.by_author(author)
        return instance.name if instance is not None else author.hex()[:12]


class Silencer:
    """(retract, assert) → whether the retract may silence the assert, once it has seen it."""

    def __init__(self, home: Optional[AuthorId]) -> None:
        self._home = home

    def __call__(self, retract: Slot, asserted: Slot) -> bool:
        return retract.dot.author in (self._home, asserted.dot.author)


Position = tuple[int, int, tuple[object, ...]]


def position(past: Past, home: Optional[bytes], slot: Slot) -> Position:
    """Where in the home's log a claim stands: the order by which the first one is found (R3.6).

    A position is a place in the home's log: that of its own claim, or the first op that has another's claim in its past, which is the
    first op of a segment. Within one position the home's own claim comes first, then the least (stamp, author, seq). Unacknowledged
    claims come last.
    """
    if slot.dot.author == home:
        return (0, slot.dot.seq * 2 - 1, slot.order)
    seen = past.seen_from(home, Dot(slot.dot.author, slot.dot.seq)) if home is not None else None
    return (1, 0, slot.order) if seen is None else (0, seen * 2, slot.order)
