"""Readings of slots under one authority: what the rules of the catalogue ask about statements (R3.3-R3.6).

Slots passed in are effective ones. A reading looks at maximal standing statements only (R3.3). Whatever depends on homes, on places
in their logs, on who silences whom and on names of instances is asked of the Reader, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, Protocol

from nsync.authority.charter import Charter
from nsync.catalogue.entries import Conflict, stamps_of
from nsync.crdt import Dot, Past, Slot, maximal, newest, standing
from nsync.crdt.past import contains
from nsync.namespace import fields
from nsync.namespace.keys import Attribute, Did, Key, Scope

NEWEST_RULE = "of values said at once the newest shows (R3.5)"


class Judge(Protocol):
    """Who decides, and what had been seen: authority.rulings.Rulings, or the obvious way (catalogue.world)."""

    charter: Charter

    @property
    def past(self) -> Past:
        """Pasts of dots."""
        ...

    def silences(self, key: Key, retract: Slot, asserted: Slot) -> bool:
        """Whether a Retract that has seen an Assert silences it."""
        ...

    def position(self, key: Key, slot: Slot) -> tuple[Any, ...]:
        """Where in the home's log a claim stands."""
        ...

    def doi_position(self, doi: str, dot: Dot) -> tuple[Any, ...]:
        """The same in the log of the instance that decides about a DOI."""
        ...


class Reader:
    """Readings of slots under one authority and one past."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.past = judge.past

    # ---- what stands

    def standing(self, key: Key, slots: Sequence[Slot]) -> Sequence[Slot]:
        """The Asserts about `key` that stand (R3.4)."""
        if len(slots) < 2:  # nobody silences the only statement
            return slots if slots and not slots[0].retract else ()
        return standing(slots, self.past, partial(self._judge.silences, key))

    def maximal(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """The maximal Asserts. A Retract withdraws its author's own statement, whose slot it takes, and answers nobody else's."""
        if len(slots) < 2:
            return slots if slots and not slots[0].retract else ()
        return maximal([slot for slot in slots if not slot.retract], self.past)

    def value(self, key: Key, slots: Sequence[Slot]) -> Optional[Slot]:
        """The statement that gives an attribute its value (R3.5)."""
        stands = self.standing(key, slots)
        return newest(stands, self.past) if len(stands) > 1 else stands[0] if stands else None

    def mine(self, author: bytes, slots: Sequence[Slot]) -> Optional[Slot]:
        """What `author` says about a key, unless somebody answered it since."""
        return next((slot for slot in maximal(slots, self.past) if slot.dot.author == author), None)

    def saw(self, later: Slot, earlier: Slot) -> bool:
        """Whether `earlier` is in the past of `later`."""
        return contains(self.past, later.dot, earlier.dot)

    # ---- who decides

    def position(self, key: Key, slot: Slot) -> tuple[Any, ...]:
        """Where in the log of the home of `key` a statement stands: its order among others'. Unacknowledged ones come last (R3.6)."""
        return self._judge.position(key, slot)

    def doi_position(self, doi: str, slot: Slot) -> tuple[Any, ...]:
        """The same in the log of the instance that the prefix of `doi` is delegated to."""
        return self._judge.doi_position(doi, slot.dot)

    def doi_home(self, doi: str) -> Optional[str]:
        """The name of the instance that the prefix of `doi` is delegated to."""
        home = self._judge.charter.doi_home(doi)
        return home.name if home is not None else None

    def home(self, scope: str) -> Optional[str]:
        """The name of the instance that `scope` is delegated to."""
        home = self._judge.charter.home(scope)
        return home.name if home is not None else None

    def name(self, author: bytes) -> str:
        """The name of the instance that `author` speaks for."""
        return self._judge.charter.name_of(author)

    # ---- what a rule took away

    def said(self, key: Key, slot: Slot) -> str:
        """An Assert as a conflict tells it: who, and what."""
        what = f"{key.field} " if isinstance(key, Attribute) else ""
        return f"{self.name(slot.dot.author)}: {what}{shown(slot.value)}"

    def beaten(self, rule: str, key: Key, winner: Slot, tops: Sequence[Slot], resolve: str) -> list[Conflict]:
        """A conflict for each of the maximal statements `tops` whose value is not the winner's."""
        losers = [slot for slot in tops if slot.value != winner.value]
        return sorted(Conflict(rule, self.said(key, winner), self.said(key, slot), resolve, stamps_of(winner, slot)) for slot in losers)

    def attribute(self, key: Attribute, slots: Sequence[Slot]) -> tuple[Optional[Slot], list[Conflict]]:
        """The statement that gives an attribute its value, and a conflict for each other value that nobody has answered (R3.5)."""
        stands = self.standing(key, slots)
        if len(stands) < 2:
            return (stands[0] if stands else None), []
        chosen = newest(stands, self.past)
        assert chosen is not None
        resolve = f"whoever is right about {key} says it once more, having seen the other"
        return chosen, self.beaten(NEWEST_RULE, key, chosen, self.maximal(stands), resolve)


def shown(value: Any) -> str:
    """A value in a text that a terminal can take."""
    if isinstance(value, fields.Identity):
        return str(value)
    return value if isinstance(value, str) and len(value) <= 120 and value.isprintable() else fields.show(value)


def close_key(did: Did) -> Attribute:
    return Attribute(did, fields.CLOSED)


def open_data_key(did: Did) -> Attribute:
    return Attribute(did, fields.OPENDATA)


def doi_key(did: Did) -> Attribute:
    return Attribute(did, fields.DOI)


def attachable_key(scope: str) -> Attribute:
    return Attribute(Scope(scope), fields.ATTACHABLE)
