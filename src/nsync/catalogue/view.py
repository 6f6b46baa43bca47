"""The catalogue: which entry each fact shows, by all rules in order (DESIGN 6).

`derive` is a pure function of the state. It is given the keys whose statements changed and works its way to every fact that
those can change: DIDs and RSEs first, then, only where one of them came, went or was closed, the attachments and
replicas that hang on it. Given all keys it recomputes everything: the oracle that the incremental use is held against.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Optional, Protocol, Union

from nsync.catalogue import cycles
from nsync.catalogue.entries import AttachmentEntry, Conflict, DidEntry, Entry, ReplicaEntry, RseEntry, ScopeEntry
from nsync.catalogue.rules import DoiClaim, Reader, close_key, doi_key, open_data_key, type_conflict
from nsync.crdt import Slot
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Key, Replica, Rse, Scope, fact_of

Node = Union[Did, Rse]
"""What attachments and replicas hang on."""


class State(Protocol):
    """What `derive` asks of a state. Every method takes a batch, so that a database answers in a few statements."""

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        """The effective slots of each key that has any."""
        ...

    def claims(self, dids: Collection[Did]) -> Mapping[Did, Sequence[Slot]]:
        """Each author's first effective claim of each DID's identity (R3.6)."""
        ...

    def entries(self, facts: Collection[Fact]) -> Mapping[Fact, Entry]:
        """What the catalogue shows now."""
        ...

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Union[Attachment, Replica]]:
        """Every attachment or replica with a statement that has one of `nodes` at either end."""
        ...

    def doi_claimants(self, dois: Collection[str]) -> Iterable[Did]:
        """Every DID about which somebody said that it bears one of `dois`."""
        ...


class Derived(NamedTuple):
    """What `derive` found: for each fact it looked at, the entry (None: not shown) and the conflicts."""

    entries: Mapping[Fact, Optional[Entry]]
    conflicts: Mapping[Fact, Sequence[Conflict]]


def derive(state: State, reader: Reader, touched: Collection[Key]) -> Derived:
    """The entries and conflicts of every fact that statements about the `touched` keys can have changed."""
    return _Derivation(state, reader).run(set(touched))


class _Derivation:
    def __init__(self, state: State, reader: Reader) -> None:
        self.state = state
        self.reader = reader
        self.entries: dict[Fact, Optional[Entry]] = {}
        self.conflicts: dict[Fact, list[Conflict]] = {}
        self._contested: set[Did] = set()
        """DIDs with several claims: which replicas are of the winner's bytes hangs on each of them."""
        self._were: set[Did] = set()
        """What was a container before: a cycle through it may be broken now."""

    def run(self, touched: set[Key]) -> Derived:
        facts = {fact_of(key) for key in touched}
        dids = {fact for fact in facts if isinstance(fact, Did)}
        rses = {fact for fact in facts if isinstance(fact, Rse)}
        nodes: list[Node] = [*dids, *rses]
        before = self.state.entries(nodes)
        self._scopes([fact for fact in facts if isinstance(fact, Scope)])
        self._dids(dids, before)
        self._rses(rses)
        closed = {key.fact for key in touched if isinstance(key, Attribute) and key.field == keys.CLOSED and isinstance(key.fact, Did)}
        self._were = {did for did, entry in before.items() if isinstance(did, Did) and self._is_container(entry)}
        moved = {node for node in nodes if self._hold(before.get(node)) != self._hold(self.entries[node])}
        hanging = set(self.state.hanging_on(moved.union(closed, self._contested)))
        hanging |= {fact for fact in facts if isinstance(fact, (Attachment, Replica))}
        self._attachments({fact for fact in hanging if isinstance(fact, Attachment)})
        self._replicas([fact for fact in hanging if isinstance(fact, Replica)])
        return Derived(self.entries, self.conflicts)

    @staticmethod
    def _hold(entry: Optional[Entry]) -> object:
        """What of a DID's or RSE's entry its attachments and replicas depend on."""
        return entry.identity if isinstance(entry, DidEntry) else entry is not None

    def _entry(self, known: Mapping[Fact, Entry], fact: Fact) -> Optional[Entry]:
        return self.entries[fact] if fact in self.entries else known.get(fact)

    def _scopes(self, scopes: Collection[Scope]) -> None:
        slots = self.state.slots(scopes)
        for scope in scopes:
            home = self.reader.authority.charter.home(scope.scope)
            stands = home is not None and self.reader.standing(scope, slots.get(scope, ()))
            self.entries[scope] = ScopeEntry(home.name) if home is not None and stands else None
            self.conflicts[scope] = []

    def _dids(self, dids: set[Did], before: Mapping[Fact, Entry]) -> None:
        doi_slots = self.state.slots([doi_key(did) for did in dids])
        dois = {slot.value for slots in doi_slots.values() for slot in slots if not slot.retract}
        dois |= {entry.doi for entry in before.values() if isinstance(entry, DidEntry) and entry.doi is not None}
        rivals = set(self.state.doi_claimants(dois)) - dids if dois else set()
        every = dids | rivals
        wanted: list[Key] = [key for did in every for key in (did, close_key(did), open_data_key(did), doi_key(did))]
        slots, claims = self.state.slots(wanted), self.state.claims(every)
        self._contested = {did for did in dids if len(claims.get(did, ())) > 1}
        asking: dict[str, list[DoiClaim]] = {}
        for did in sorted(every):
            entry, conflicts = self._did(did, slots, claims.get(did, ()))
            asks = self.reader.value(doi_key(did), slots.get(doi_key(did), ())) if entry is not None else None
            if did in dids or (asks is not None and asks.value in dois):
                self.entries[did], self.conflicts[did] = entry, conflicts
                if asks is not None:
                    asking.setdefault(asks.value, []).append(DoiClaim(did, asks))
        for doi, claimants in asking.items():
            self._doi(doi, claimants)

    def _did(self, did: Did, slots: Mapping[Key, Sequence[Slot]], claims: Sequence[Slot]) -> tuple[Optional[DidEntry], list[Conflict]]:
        """The entry but for the DOI, and the identity conflicts."""
        stands = self.reader.standing(did, slots.get(did, ()))
        if not claims:
            return None, []
        identity, origin, _ = self.reader.identity(did, claims)
        conflicts = self.reader.identity_conflicts(did, identity, claims, stands)
        if not stands:
            return None, conflicts
        open_data = self.reader.open_data(slots.get(open_data_key(did), ()))
        closes = self.reader.closes(slots.get(close_key(did), ()))
        closed = None if identity.type == keys.FILE else bool(closes) or open_data is not None
        return DidEntry(identity, origin, closed, open_data, None), conflicts

    def _doi(self, doi: str, claimants: Sequence[DoiClaim]) -> None:
        winner = self.reader.doi_winner(doi, claimants)
        for claim in claimants:
            entry = self.entries[claim.did]
            assert isinstance(entry, DidEntry)
            if claim is winner:
                self.entries[claim.did] = entry._replace(doi=doi)
                continue
            name = self.reader.authority.name
            self.conflicts[claim.did].append(
                Conflict(
                    "a DOI names one DID (6.6)",
                    f"{name(winner.slot.dot.author)}: {doi} is {winner.did}",
                    f"{name(claim.slot.dot.author)}: {doi} is {claim.did}",
                    f"give {claim.did} a DOI of its own",
                )
            )

    def _rses(self, rses: Collection[Rse]) -> None:
        fields = (keys.PROTOCOLS, keys.ATTRIBUTES)
        wanted: list[Key] = [*rses, *(Attribute(rse, field) for rse in rses for field in fields)]
        slots = self.state.slots(wanted)
        for rse in rses:
            protocols, attributes = (self.reader.value(Attribute(rse, field), slots.get(Attribute(rse, field), ())) for field in fields)
            shown = bool(self.reader.standing(rse, slots.get(rse, ())))
            self.entries[rse] = RseEntry(protocols.value if protocols else (), attributes.value if attributes else ()) if shown else None
            self.conflicts[rse] = []

    def _attachments(self, edges: set[Attachment]) -> None:
        candidates = self._candidates(edges)
        self._settle(edges, candidates)
        affected = cycles.affected(self._container_edges(edges), self._neighbourhood)
        if affected - edges:
            candidates.update(self._candidates(affected - edges))
            self._settle(affected - edges, candidates)
        for edge in cycles.hidden({edge: order for edge, order in candidates.items() if edge in affected}):
            self.entries[edge] = None
            self.conflicts[edge].append(
                Conflict("containers hold no cycle (6.3)", "the older attachments of the cycle", str(edge), "its author detaches it")
            )

    def _candidates(self, edges: Collection[Attachment]) -> dict[Attachment, tuple[object, ...]]:
        """Those that every rule but the one against cycles shows, with their order; the conflicts of the others are noted."""
        wanted: list[Key] = [*edges, *(close_key(parent) for parent in {edge.parent for edge in edges})]
        slots = self.state.slots(wanted)
        ends = self.state.entries([end for end in _ends(edges) if end not in self.entries])
        found: dict[Attachment, tuple[object, ...]] = {}
        for edge in sorted(edges):
            self.conflicts[edge] = []
            stands = self.reader.standing(edge, slots.get(edge, ()))
            parent, child = self._entry(ends, edge.parent), self._entry(ends, edge.child)
            if not stands or not isinstance(parent, DidEntry) or not isinstance(child, DidEntry):
                continue  # retracted, or dangling: it waits, invisible (6.4)
            wrong = type_conflict(edge, parent.identity, child.identity)
            if wrong is not None:
                self.conflicts[edge].append(wrong)
            elif self.reader.edge_shown(stands, self.reader.closes(slots.get(close_key(edge.parent), ()))):
                found[edge] = self.reader.edge_order(stands)
            else:
                self.conflicts[edge].append(
                    Conflict(
                        "closed collections stay as they are (6.2)",
                        f"{edge.parent} was closed",
                        str(edge),
                        f"the home of {edge.parent} attaches it",
                    )
                )
        return found

    def _settle(self, edges: Iterable[Attachment], candidates: Collection[Attachment]) -> None:
        for edge in edges:
            self.entries[edge] = AttachmentEntry() if edge in candidates else None

    def _container_edges(self, edges: Collection[Attachment]) -> list[Attachment]:
        known = self.state.entries([end for end in _ends(edges) if end not in self.entries])
        return [
            edge
            for edge in edges
            if all(end in self._were or self._is_container(self._entry(known, end)) for end in (edge.parent, edge.child))
        ]

    def _neighbourhood(self, dids: Collection[Did]) -> list[Attachment]:
        """The attachments of containers to the containers `dids`."""
        below = [edge for edge in self.state.hanging_on(dids) if isinstance(edge, Attachment) and edge.parent in dids]
        return self._container_edges(below)

    @staticmethod
    def _is_container(entry: Optional[Entry]) -> bool:
        return isinstance(entry, DidEntry) and entry.identity.type == keys.CONTAINER

    def _replicas(self, replicas: Sequence[Replica]) -> None:
        dids, places = {replica.did for replica in replicas}, {replica.rse for replica in replicas}
        slots, claims = self.state.slots(replicas), self.state.claims(dids)
        nodes: list[Node] = [*dids, *places]
        known = self.state.entries([node for node in nodes if node not in self.entries])
        for replica in replicas:
            self.conflicts[replica] = []
            self.entries[replica] = None
            did, rse = self._entry(known, replica.did), self._entry(known, replica.rse)
            said = self.reader.value(replica, slots.get(replica, ()))
            if said is None or rse is None or not isinstance(did, DidEntry) or did.identity.type != keys.FILE:
                continue
            if all(did.identity.agrees(claim.value) for claim in claims.get(replica.did, ()) if claim.dot.author == said.dot.author):
                self.entries[replica] = ReplicaEntry(said.value)
            # else it holds the loser's bytes: the DID's identity conflict says so


def _ends(edges: Iterable[Attachment]) -> set[Did]:
    return {end for edge in edges for end in (edge.parent, edge.child)}
