"""The state of one instance in memory: the obvious way, and the oracle of the SQL store.

What counts is computed anew for each segment (`catalogue.world`). `catalogue` is maintained incrementally by `view.derive`, as a store
does; `recomputed` derives everything from nothing but what counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

from nsync.authority.charter import Charter
from nsync.catalogue.entries import Conflict, Entry
from nsync.catalogue.opendata import Name, name_of
from nsync.catalogue.rules import Reader
from nsync.catalogue.state import About, Hanging, Node, other_end
from nsync.catalogue.view import derive
from nsync.catalogue.world import World
from nsync.crdt import Slot
from nsync.crdt.past import contains
from nsync.log.floor import Vote
from nsync.log.segment import Dep, Segment
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Key, anchor_of

Catalogue = dict[Fact, Entry]
Conflicts = dict[Fact, Sequence[Conflict]]


class Reference:
    """What segments, in causal order, and votes add up to."""

    def __init__(self, charter: Charter, votes: Iterable[Vote] = ()) -> None:
        self.charter = charter
        self._votes = tuple(votes)
        self._segments: list[Segment] = []
        self._world: Optional[World] = None
        self._seen = Known(World(charter, ()), {}, {})
        self._derived = 0
        """Of how many segments the catalogue tells."""

    def apply(self, segment: Segment) -> None:
        """Take in the next segment of its author's log."""
        self._segments.append(segment)
        self._world = None

    @property
    def world(self) -> World:
        """What counts now."""
        if self._world is None:
            self._world = World(self.charter, self._segments, self._votes)
        return self._world

    @property
    def heads(self) -> dict[bytes, int]:
        """The last seq of each author's log, on whatever branch."""
        found: dict[bytes, int] = {}
        for segment in self._segments:
            found[segment.header.author] = max(segment.header.last, found.get(segment.header.author, 0))
        return found

    @property
    def catalogue(self) -> Catalogue:
        """What is shown."""
        return self.known.catalogue

    @property
    def conflicts(self) -> Conflicts:
        """What the rules took away."""
        return self.known.conflicts

    def recomputed(self) -> tuple[Catalogue, Conflicts]:
        """Catalogue and conflicts, derived from nothing but what counts."""
        known = Known(self.world, {}, {})
        known.derive(set(self.world.slots_by_key))
        return known.catalogue, known.conflicts

    def slot_keys(self) -> set[Key]:
        """Every key with an effective statement."""
        return set(self.world.slots_by_key)

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        """The effective slots of each key that has any."""
        return Known(self.world, {}, {}).slots(wanted)

    def about(self, dids: Collection[Did]) -> Mapping[Did, About]:
        """All that counts about each of `dids` and what is anchored at it."""
        return Known(self.world, {}, {}).about(dids)

    def said_keys(self) -> set[Key]:
        """Every key about which something is said, whether it counts or not."""
        return {said.key for segment in self._segments for said in self.world.said_in(segment)}

    def ends(self) -> list[Dep]:
        """The last changeset of each branch of each log."""
        nodes = self.world.nodes.values()
        ends = [n for n in nodes if n.header.commit and not any(m.header.commit and m != n and n.hash in m.chain for m in nodes)]
        return [Dep(node.header.author, node.header.last, node.hash) for node in ends]

    @property
    def known(self) -> Known:
        """What counts, and the catalogue so far."""
        while self._derived < len(self._segments):
            self._derived += 1
            before, segments = self._seen.world, self._segments[: self._derived]
            world = self.world if self._derived == len(self._segments) else World(self.charter, segments, self._votes)
            self._seen = Known(world, self._seen.catalogue, self._seen.conflicts)
            self._seen.derive(_touched(before, world, segments[-1]))
        return self._seen


def _touched(before: World, world: World, segment: Segment) -> set[Key]:
    """What a segment says, and what it moves without a word: slots that count now or no more, and claims that come in another order."""
    keys = {*before.slots_by_key, *world.slots_by_key}
    moved = {key for key in keys if before.slots_by_key.get(key) != world.slots_by_key.get(key)}
    for did, claims in world.claims_by_did.items():
        if before.claims_by_did.get(did) != claims or any(before.position(did, one) != world.position(did, one) for one in claims.values()):
            moved.add(did)
    for key in keys - moved:
        if isinstance(key, Attribute) and key.field == fields.DOI:
            slots = world.slots_by_key[key].values()
            moved |= {key for s in slots if not s.retract and before.doi_position(s.value, s.dot) != world.doi_position(s.value, s.dot)}
    return moved | {said.key for said in world.said_in(segment)}


class Known:
    """What counts, and the catalogue so far: what `derive` asks."""

    def __init__(self, world: World, catalogue: Catalogue, conflicts: Conflicts) -> None:
        self.world = world
        self.catalogue = catalogue
        self.conflicts = conflicts

    def derive(self, touched: Collection[Key]) -> None:
        """Bring the catalogue up to date with `touched`."""
        derived = derive(self, Reader(self.world), touched)
        self.catalogue = {**self.catalogue, **{fact: entry for fact, entry in derived.entries.items() if entry is not None}}
        for fact, entry in derived.entries.items():
            if entry is None:
                self.catalogue.pop(fact, None)
        conflicts = {**self.conflicts, **derived.conflicts}
        self.conflicts = {fact: found for fact, found in conflicts.items() if found}

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        said = self.world.slots_by_key
        return {key: [said[key][author] for author in sorted(said[key])] for key in wanted if key in said}

    def about(self, dids: Collection[Did]) -> Mapping[Did, About]:
        wanted = set(dids)
        found: dict[Did, dict[Key, Sequence[Slot]]] = {did: {} for did in wanted}
        for key in self.world.slots_by_key:
            if anchor_of(key) in wanted:
                found[anchor_of(key)][key] = self.slots([key])[key]  # type: ignore[index]
        claims = self.world.claims_by_did
        return {did: About(slots, sorted(claims.get(did, {}).values())) for did, slots in found.items() if slots}

    def entries(self, facts: Collection[Fact]) -> Mapping[Fact, Entry]:
        return {fact: self.catalogue[fact] for fact in facts if fact in self.catalogue}

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Hanging]:
        return {key for key in self.world.slots_by_key if other_end(key) in nodes}  # type: ignore[misc]

    def late_in(self, seals: Mapping[Did, Sequence[Slot]]) -> Iterable[Attachment]:
        edges = (key for key in self.world.slots_by_key if isinstance(key, Attachment) and key.parent in seals)
        return {edge for edge in edges if edge not in self.catalogue or self._is_late(edge, seals[edge.parent])}

    def _is_late(self, edge: Attachment, seals: Sequence[Slot]) -> bool:
        said = [slot.dot for slot in self.world.slots_by_key[edge].values() if not slot.retract]
        return not all(contains(self.world, seal.dot, dot) for seal in seals for dot in said)

    def asking(self, names: Collection[Name]) -> Iterable[Did]:
        said = ((key, slot) for key, slots in self.world.slots_by_key.items() for slot in slots.values() if not slot.retract)
        return {key.fact for key, slot in said if isinstance(key, Attribute) and name_of(key, slot.value) in names}  # type: ignore[misc]

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        return {fact for fact in self.catalogue if isinstance(fact, Did) and fact.scope in scopes}
