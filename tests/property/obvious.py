"""The rules about several facts at once, read off their text: every attachment and every name of a state looked at each time.

Nothing here is shared with the catalogue but the questions that a Reader answers about statements.
"""

from __future__ import annotations

from nsync.catalogue.entries import DidEntry, ScopeEntry
from nsync.catalogue.reference import Reference
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Did, Key, Scope

FITS = {("D", "F"), ("C", "D"), ("C", "C")}


class Obvious:
    """What a state must show."""

    def __init__(self, state: Reference) -> None:
        self.state = state
        self.reader = Reader(state.world)
        self.dids = {fact: entry for fact, entry in state.catalogue.items() if isinstance(entry, DidEntry)}

    def slots(self, key: Key) -> list[Slot]:
        return list(self.state.slots([key]).get(key, ()))

    def tops(self, key: Key) -> list[Slot]:
        """The maximal standing Asserts."""
        stand = self.reader.standing(key, self.slots(key))
        return [slot for slot in stand if not any(self.reader.saw(other, slot) for other in stand)]

    def register(self, key: Key) -> list[Slot]:
        """The maximal Asserts, nobody's Retract answering another's."""
        said = [slot for slot in self.slots(key) if not slot.retract]
        return [slot for slot in said if not any(self.reader.saw(other, slot) for other in said)]

    # ---- attachments

    def attachments(self) -> set[Attachment]:
        """Those that show."""
        edges = {key: self.tops(key) for key in self.state.slot_keys() if isinstance(key, Attachment)}
        edges = {edge: tops for edge, tops in edges.items() if tops and edge.parent in self.dids and edge.child in self.dids}
        edges = {edge: tops for edge, tops in edges.items() if (self.type(edge.parent), self.type(edge.child)) in FITS}
        edges = {edge: tops for edge, tops in edges.items() if not self.forbidden(edge, tops) and not self.came_late(edge, tops)}
        orders = {edge: (min(slot.order for slot in tops), edge) for edge, tops in edges.items()}
        pure = {edge for edge in orders if self.type(edge.child) == self.type(self.deciding(edge.parent, orders).child)}
        return {edge for edge in pure if not self.closes_a_cycle(edge, {e: orders[e] for e in pure})}

    def type(self, did: Did) -> str:
        return self.dids[did].identity.type

    def forbidden(self, edge: Attachment, tops: list[Slot]) -> bool:
        scope = Scope(edge.child.scope)
        marks = [slot for slot in self.register(Attribute(scope, fields.ATTACHABLE)) if slot.value is False]
        shown = isinstance(self.state.catalogue.get(scope), ScopeEntry)
        return shown and any(all(self.reader.saw(top, mark) for top in tops) for mark in marks)

    def came_late(self, edge: Attachment, tops: list[Slot]) -> bool:
        closes = [slot for slot in self.register(Attribute(edge.parent, fields.CLOSED)) if slot.value]
        states = self.register(Attribute(edge.parent, fields.OPENDATA))
        seals = closes + [state for state in states if not any(self.reader.saw(close, state) for close in closes)]
        return not any(all(self.reader.saw(seal, top) for seal in seals) for top in tops)

    @staticmethod
    def deciding(parent: Did, orders: dict[Attachment, object]) -> Attachment:
        return min((edge for edge in orders if edge.parent == parent), key=lambda edge: orders[edge])  # type: ignore[return-value]

    @staticmethod
    def closes_a_cycle(edge: Attachment, orders: dict[Attachment, object]) -> bool:
        reached, fresh = set(), {edge.child}
        while fresh:
            reached |= fresh
            fresh = {e.child for e in orders if e.parent in fresh and orders[e] < orders[edge]} - reached  # type: ignore[operator]
        return edge.parent in reached

    # ---- names

    def names(self, field: str) -> dict[object, Did]:
        """Who bears each DOI or record id."""
        asks: dict[object, list[tuple[object, Did]]] = {}
        for did in self.dids:
            said = max(self.tops(Attribute(did, field)), key=lambda slot: slot.order, default=None)
            if said is not None:
                name = said.value.upper() if field == fields.DOI else said.value
                asks.setdefault(name, []).append((self.rank(field, said), did))
        return {name: min(asking)[1] for name, asking in asks.items()}  # type: ignore[type-var]

    def rank(self, field: str, said: Slot) -> object:
        if field != fields.DOI:
            return said.order
        delegate = self.reader.doi_home(said.value)
        return delegate != self.reader.name(said.dot.author), self.reader.doi_position(said.value, said), said.order
