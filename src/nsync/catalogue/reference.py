"""The state of one instance in memory, applied a segment at a time: the obvious way, and the oracle of the SQL store.

Segments are applied in causal order; whoever calls sees to that. `catalogue` is maintained incrementally by `view.derive`;
`recomputed` derives everything anew from the slots.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy

from nsync.authority.effective import Authority
from nsync.catalogue.entries import Conflict, Entry
from nsync.catalogue.judge import first_claims, judge
from nsync.catalogue.opendata import Name, name_of
from nsync.catalogue.rules import Reader
from nsync.catalogue.state import About, Hanging, Node, other_end
from nsync.catalogue.view import derive
from nsync.crdt import Dot, Pasts, Slot, Slots
from nsync.crdt.past import contains, steps_of
from nsync.log.segment import Segment
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Key, anchor_of


class Reference:
    """Slots, pasts, claims and catalogue of all applied segments."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.pasts = Pasts()
        self.heads: dict[bytes, int] = {}
        self.catalogue: dict[Fact, Entry] = {}
        self.conflicts: dict[Fact, Sequence[Conflict]] = {}
        self._slots = Slots()
        self._claims: dict[Did, dict[bytes, Slot]] = {}
        self._waiting: list[tuple[Key, Slot]] = []
        self._anchored: dict[Did, set[Key]] = {}
        self._hanging: dict[Node, set[Hanging]] = {}
        self._name_keys: set[Attribute] = set()

    def apply(self, segment: Segment) -> None:
        """Take in the next segment of its author's log."""
        header = segment.header
        steps = steps_of(self.pasts, header.author, header.first, [Dot(dep.author, dep.seq) for dep in header.deps])
        for step in steps:
            self.pasts.add(step)
        judged = judge(self.authority, segment)
        self._waiting += judged.waiting
        settled = [(key, slot) for key, slot in self._waiting if self._acknowledged(key, slot)]
        self._waiting = [pair for pair in self._waiting if pair not in settled]
        self.heads[header.author] = header.last
        touched = self._join([*settled, *judged.effective])
        ordered: list[tuple[Key, Collection[Slot]]] = [(did, claims.values()) for did, claims in self._claims.items() if len(claims) > 1]
        for key, slots in [*ordered, *((key, self._slots.of(key)) for key in self._name_keys)]:
            if any(self.pasts.seen_from(header.author, slot.dot) == header.first for slot in slots):
                touched.add(key)  # their order may be another, now that this author has seen one of them
        derived = derive(self, Reader(self.authority, self.pasts), touched)
        for fact, entry in derived.entries.items():
            if entry is None:
                self.catalogue.pop(fact, None)
            else:
                self.catalogue[fact] = entry
        self.conflicts.update(derived.conflicts)
        self.conflicts = {fact: found for fact, found in self.conflicts.items() if found}

    def recomputed(self) -> tuple[dict[Fact, Entry], dict[Fact, Sequence[Conflict]]]:
        """Catalogue and conflicts, derived from nothing but the slots, claims and pasts."""
        anew = copy(self)
        anew.catalogue, anew.conflicts = {}, {}
        derived = derive(anew, Reader(self.authority, self.pasts), self.slot_keys())
        shown = {fact: entry for fact, entry in derived.entries.items() if entry is not None}
        return shown, {fact: found for fact, found in derived.conflicts.items() if found}

    def slot_keys(self) -> set[Key]:
        """Every key with an effective statement."""
        return self._slots.keys()  # type: ignore[return-value]

    def _acknowledged(self, key: Key, slot: Slot) -> bool:
        home = self.authority.decider(key)
        return home is not None and self.pasts.seen_from(home, slot.dot) is not None

    def _join(self, statements: Iterable[tuple[Key, Slot]]) -> set[Key]:
        statements = list(statements)
        for (did, author), claim in first_claims(statements).items():
            held = self._claims.setdefault(did, {}).setdefault(author, claim)
            if claim.dot.seq < held.dot.seq:
                self._claims[did][author] = claim
        touched: set[Key] = set()
        for key, slot in statements:
            self._slots.join(key, slot)
            touched.add(key)
            anchor, end = anchor_of(key), other_end(key)
            if isinstance(anchor, Did):
                self._anchored.setdefault(anchor, set()).add(key)
            if end is not None:
                self._hanging.setdefault(end, set()).add(key)  # type: ignore[arg-type]
            if not slot.retract and name_of(key, slot.value) is not None:
                self._name_keys.add(key)  # type: ignore[arg-type]
        return touched

    # what `derive` asks

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        return {key: slots for key in wanted if (slots := self._slots.of(key))}

    def about(self, dids: Collection[Did]) -> Mapping[Did, About]:
        return {
            did: About(self.slots(self._anchored[did]), sorted(self._claims.get(did, {}).values())) for did in dids if did in self._anchored
        }

    def entries(self, facts: Collection[Fact]) -> Mapping[Fact, Entry]:
        return {fact: self.catalogue[fact] for fact in facts if fact in self.catalogue}

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Hanging]:
        return {fact for node in nodes for fact in self._hanging.get(node, ())}

    def late_in(self, seals: Mapping[Did, Sequence[Slot]]) -> Iterable[Attachment]:
        edges = (fact for did in seals for fact in self._hanging.get(did, ()) if isinstance(fact, Attachment))
        return {edge for edge in edges if edge not in self.catalogue or self._is_late(edge, seals[edge.parent])}

    def _is_late(self, edge: Attachment, seals: Sequence[Slot]) -> bool:
        said = [slot.dot for slot in self._slots.of(edge) if not slot.retract]
        return not all(contains(self.pasts, seal.dot, dot) for seal in seals for dot in said)

    def asking(self, names: Collection[Name]) -> Iterable[Did]:
        said = ((key, slot) for key in self._name_keys for slot in self._slots.of(key) if not slot.retract)
        return {key.fact for key, slot in said if name_of(key, slot.value) in names}  # type: ignore[misc]

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        return {fact for fact in self.catalogue if isinstance(fact, Did) and fact.scope in scopes}
