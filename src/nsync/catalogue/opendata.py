"""Open data: the state, and the names that only one DID can bear (DESIGN 6.5, 6.6).

- **State**: among the maximal statements SUSPENDED wins. A state implies closed; how it seals a collection is told in `collections`.
- **DOI**: of those who ask for it, the DID for which the instance that the prefix is delegated to asks itself bears it, in the order
  of that instance's log; else the one whose asking that log acknowledges first; and while it acknowledges none, provisionally the
  one that asked with the least (stamp, author, seq). So nobody can take a DOI from its delegate by being first in its log (ADR 10).
- **Record id**: delegated to nobody, so always the last of these.

A DOI is one name in upper and lower case, as the DOI handbook has it. Only shown DIDs ask. Who loses shows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

from nsync.catalogue.entries import Conflict, stamps_of
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot
from nsync.namespace import fields
from nsync.namespace.keys import Attribute, Did, Key

STATE_RULE = "SUSPENDED wins (6.5)"
REOPEN_RULE = "open data stay closed (6.5)"
CLOSE_RULE = "of a close and a reopen at once the close wins (6.2)"
NAMES = (fields.DOI, fields.RECORD)
RULES = {fields.DOI: "a DOI names one DID (6.6)", fields.RECORD: "a record id names one DID (6.6)"}

Name = tuple[str, Union[str, int]]
"""(field, value): what one DID at most bears."""


class Asking(NamedTuple):
    """The statement by which a shown DID asks for a name."""

    did: Did
    slot: Slot


def name_of(key: Key, value: Any) -> Optional[Name]:
    """The name that an Assert about `key` asks for, if it is one of those that one DID at most bears."""
    if key[0] != fields.ATTRIBUTE or key[1] not in NAMES or key[2] != fields.DID:
        return None
    return name(key[1], value)


def name(field: str, value: Any) -> Name:
    return (field, value.upper() if field == fields.DOI else value)


def state(reader: Reader, did: Did, slots: Sequence[Slot]) -> tuple[Optional[str], list[Conflict]]:
    """PUBLIC, SUSPENDED or None, and a conflict for each maximal statement that says otherwise."""
    tops = reader.maximal(slots)
    winner = max(tops, key=lambda slot: (slot.value, slot.order), default=None)
    if winner is None:
        return None, []
    key = Attribute(did, fields.OPENDATA)
    return winner.value, reader.beaten(STATE_RULE, key, winner, tops, "who may publish says PUBLIC once more, having seen the suspension")


def closed(reader: Reader, did: Did, slots: Sequence[Slot], state: Optional[str]) -> tuple[bool, list[Conflict]]:
    """Whether a collection is closed, and a conflict for each reopen among the maximal statements that does not count."""
    tops = reader.maximal(slots)
    closes, reopens = [slot for slot in tops if slot.value], [slot for slot in tops if not slot.value]
    if closes:
        resolve = f"the home of {did} reopens it, having seen the close"
        winner = max(closes, key=lambda slot: slot.order)
        taken = [
            Conflict(CLOSE_RULE, f"{reader.name(winner.dot.author)}: closed", _reopen(reader, one), resolve, stamps_of(winner, one))
            for one in reopens
        ]
    else:
        resolve = "its author closes it again: there is no way back from open data"
        taken = [Conflict(REOPEN_RULE, f"{did} is {state}", _reopen(reader, one), resolve, stamps_of(None, one)) for one in reopens]
    return bool(closes) or state is not None, sorted(taken) if closes or state is not None else []


def _reopen(reader: Reader, slot: Slot) -> str:
    return f"{reader.name(slot.dot.author)}: reopened"


def bearer(reader: Reader, field: str, asking: Sequence[Asking]) -> Asking:
    """Who bears the name that all of `asking` ask for."""
    return min(asking, key=lambda one: (*_order(reader, field, one.slot), one.did))


def _order(reader: Reader, field: str, slot: Slot) -> tuple[Any, ...]:
    if field != fields.DOI:
        return (True, slot.order)
    own = reader.doi_home(slot.value) == reader.name(slot.dot.author)
    return (not own, reader.doi_position(slot.value, slot), slot.order)


def name_conflict(reader: Reader, field: str, winner: Asking, loser: Asking) -> Conflict:
    one, other = (f"{reader.name(asking.slot.dot.author)}: {asking.slot.value} is {asking.did}" for asking in (winner, loser))
    resolve = f"give {loser.did} a {'DOI' if field == fields.DOI else 'record id'} of its own"
    return Conflict(RULES[field], one, other, resolve, stamps_of(winner.slot, loser.slot))
