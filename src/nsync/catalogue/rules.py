"""The rules of the catalogue, each a short pure function of slots (DESIGN 6). `view` applies them in order.

Slots passed in are effective ones. A reading looks at maximal standing statements only (R3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from nsync.authority.effective import Authority, position
from nsync.catalogue.entries import Conflict
from nsync.crdt import Past, Slot, maximal, newest, standing
from nsync.crdt.past import contains
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Key

CHILD_TYPES = {keys.DATASET: (keys.FILE,), keys.CONTAINER: (keys.DATASET, keys.CONTAINER), keys.FILE: ()}
"""What a collection of each type may hold."""


class Reader:
    """Readings of slots under one authority and one past."""

    def __init__(self, authority: Authority, past: Past) -> None:
        self.authority = authority
        self.past = past

    def standing(self, key: Key, slots: Sequence[Slot]) -> list[Slot]:
        """The Asserts about `key` that stand (R3.4)."""
        return standing(slots, self.past, self.authority.silences(key))

    def value(self, key: Key, slots: Sequence[Slot]) -> Optional[Slot]:
        """The statement that gives an attribute its value (R3.5)."""
        return newest(self.standing(key, slots), self.past)

    def maximal(self, slots: Sequence[Slot]) -> list[Slot]:
        """The maximal Asserts. A Retract withdraws its author's own statement, whose slot it takes, and answers nobody else's."""
        return maximal([slot for slot in slots if not slot.retract], self.past)

    def mine(self, author: bytes, slots: Sequence[Slot]) -> Optional[Slot]:
        """What `author` says about a key, unless somebody answered it since."""
        return next((slot for slot in maximal(slots, self.past) if slot.dot.author == author), None)

    def identity(self, did: Did, claims: Sequence[Slot]) -> tuple[Identity, str, Slot]:
        """The identity that `did` has for ever, whose it is, and the claim: the first one by the home's log (R3.6)."""
        home = self.authority.decider(did)
        first = min(claims, key=lambda claim: position(self.past, home, claim))
        return first.value, self.authority.name(first.dot.author), first

    def identity_conflicts(self, did: Did, identity: Identity, claims: Sequence[Slot], stands: Sequence[Slot]) -> list[Conflict]:
        """A conflict for each author who says that `did` is something else."""
        winner = f"{self.identity(did, claims)[1]}: {identity}"
        losers = {f"{self.authority.name(s.dot.author)}: {s.value}" for s in [*claims, *stands] if not identity.agrees(s.value)}
        resolve = f"the loser renames its {did}, or withdraws it"
        return [Conflict("identity is for ever (R3.6)", winner, loser, resolve) for loser in sorted(losers)]

    def closes(self, slots: Sequence[Slot]) -> list[Slot]:
        """The closes among the maximal statements about open/closed: the collection is closed iff there is one (6.2)."""
        return [slot for slot in self.maximal(slots) if slot.value is True]

    def open_data(self, slots: Sequence[Slot]) -> Optional[str]:
        """PUBLIC, SUSPENDED or None: among the maximal statements SUSPENDED wins (6.5)."""
        return max((slot.value for slot in self.maximal(slots)), default=None)

    def edge_shown(self, stands: Sequence[Slot], closes: Sequence[Slot]) -> bool:
        """Whether an attachment made it before every close (6.2)."""
        edges = maximal(stands, self.past)
        return all(any(contains(self.past, close.dot, edge.dot) for edge in edges) for close in closes)

    def edge_order(self, stands: Sequence[Slot]) -> tuple[object, ...]:
        """The key of an attachment: the least (stamp, author, seq) of its maximal standing Asserts (6.3)."""
        return min(slot.order for slot in maximal(stands, self.past))

    def doi_winner(self, doi: str, claimants: Sequence[DoiClaim]) -> DoiClaim:
        """Who bears `doi`: the first by the log of the instance that its prefix is delegated to (6.6)."""
        home = self.authority.charter.doi_home(doi)
        author = home.author if home is not None else None
        return min(claimants, key=lambda claim: (*position(self.past, author, claim.slot), claim.did))


class DoiClaim(NamedTuple):
    """The statement by which a shown DID asks for its DOI."""

    did: Did
    slot: Slot


def close_key(did: Did) -> Attribute:
    return Attribute(did, keys.CLOSED)


def open_data_key(did: Did) -> Attribute:
    return Attribute(did, keys.OPENDATA)


def doi_key(did: Did) -> Attribute:
    return Attribute(did, keys.DOI)


def type_conflict(edge: Attachment, parent: Identity, child: Identity) -> Optional[Conflict]:
    """A dataset holds files, a container datasets or containers (6.1)."""
    if child.type in CHILD_TYPES[parent.type]:
        return None
    return Conflict("types (6.1)", f"{edge.parent} is a {parent}", f"{edge.child} is a {child}", "its author detaches it")
