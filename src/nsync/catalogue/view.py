"""The catalogue: which entry each fact shows, by all rules in order (DESIGN 6).

`derive` is a pure function of the state. It is given the keys whose statements changed and works its way to every fact that
those can change: scopes, DIDs and RSEs first, then, only where one of them came, went, was closed or changed what depends on it, the
attachments, constituents and replicas that hang on it. Given all keys, and a state whose catalogue is empty, it computes everything
anew: the oracle that the incremental use is held against.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Optional

from nsync.catalogue import collections, identity
from nsync.catalogue.dids import derive_dids
from nsync.catalogue.edges import derive_attachments, seals_of
from nsync.catalogue.entries import Conflict, ConstituentEntry, DidEntry, Entry, ReplicaEntry, RseEntry, ScopeEntry, stamps_of
from nsync.catalogue.rules import Reader, attachable_key
from nsync.catalogue.state import About, Derived, Draft, Hanging, Node, State
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Fact, Key, Replica, Rse, Scope, anchor_of, fact_of

VERSION = 1
"""Of the rules: a catalogue that was derived by others must be derived anew."""

TOUCHED_MAX = 1 << 15
"""Keys that are looked at together: a revocation may touch all that a guest ever said."""

MARK_RULE = "of two words about a scope at once the mark wins (R5.5)"

_HANGING = (fields.ATTACHMENT, fields.CONSTITUENT, fields.REPLICA)
_SEALING = (fields.CLOSED, fields.OPENDATA)
"""What decides which attachments of a collection show."""


NOBODY: Mapping[Did, About] = MappingProxyType({})


def derive(state: State, reader: Reader, touched: Collection[Key], new: Mapping[Did, About] = NOBODY) -> Derived:
    """The entries and conflicts of every fact that statements about the `touched` keys can have changed.

    `new`: DIDs of which nothing was known, with all that counts about them, so that nothing has to be asked. No statement has them at
    its other end (`other_end`), and none asks for a name.
    """
    return _Derivation(Draft(state, reader)).run(set(touched), new)


def parts(touched: Collection[Key]) -> Iterator[Collection[Key]]:
    """`touched` in parts for `derive`, one at least; keys about one DID stay together, if they are not too many."""
    if len(touched) <= TOUCHED_MAX:
        yield touched
        return
    near: dict[Any, list[Key]] = {}
    for key in touched:
        near.setdefault(anchor_of(key), []).append(key)
    keys = [key for its in near.values() for key in its]
    yield from (keys[start : start + TOUCHED_MAX] for start in range(0, len(keys), TOUCHED_MAX))


class _Facts:
    """Facts by their kinds, each once."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        by_tag: dict[int, list[Any]] = {}
        for fact in set(facts):
            by_tag.setdefault(fact[0], []).append(fact)
        self.scopes: list[Scope] = by_tag.get(fields.SCOPE, [])
        self.dids: list[Did] = by_tag.get(fields.DID, [])
        self.attachments: list[Attachment] = by_tag.get(fields.ATTACHMENT, [])
        self.constituents: list[Constituent] = by_tag.get(fields.CONSTITUENT, [])
        self.rses: list[Rse] = by_tag.get(fields.RSE, [])
        self.replicas: list[Replica] = by_tag.get(fields.REPLICA, [])


class _Derivation:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.state = draft.state
        self.reader = draft.reader

    def run(self, touched: set[Key], new: Mapping[Did, About]) -> Derived:
        facts = _Facts(chain(map(fact_of, touched), (fact_of(key) for about in new.values() for key in about.slots)))
        for did, about in new.items():
            self.draft.add_new(did, about)
        self._scopes(facts.scopes)
        derive_dids(self.draft, set(facts.dids))
        self._rses(facts.rses)
        nodes = self._nodes(touched).difference(new)
        late = self._late(touched, nodes)
        hanging = _Facts(self._hanging_on(nodes).union(late, facts.attachments, facts.constituents, facts.replicas))
        derive_attachments(self.draft, hanging.attachments, {node for node in nodes if isinstance(node, Did)})
        self._constituents(hanging.constituents)
        self._replicas(hanging.replicas)
        return self.draft.derived()

    # ---- what the change concerns

    def _nodes(self, touched: Collection[Key]) -> set[Node]:
        """The DIDs and RSEs of which everything that hangs on them must be looked at."""
        draft = self.draft
        nodes: set[Node] = set()
        for fact, entry in draft.entries.items():
            if isinstance(fact, (Did, Rse)) and _hold(draft.before(fact)) != _hold(entry):
                nodes.add(fact)
        for key in touched:
            if isinstance(key, Did) and _is_file(draft.did(key)):
                nodes.add(key)  # somebody said of which bytes its replicas are
        return nodes.union(self.state.dids_in(self._marked())) if self._marked() else nodes

    def _late(self, touched: Collection[Key], nodes: Collection[Node]) -> Iterable[Attachment]:
        """The attachments of the collections that were closed or reopened which that may concern; those of `nodes` all are looked at."""
        sealed = {key.fact for key in touched if isinstance(key, Attribute) and key.field in _SEALING}
        dids = [did for did in sealed if isinstance(did, Did) and did not in nodes and self.draft.did(did) is not None]
        seals = seals_of(self.draft, dids)
        return self.state.late_in({did: seals.get(did, ()) for did in dids}) if dids else ()

    def _marked(self) -> list[str]:
        """The scopes that became attachable or not."""
        return [
            fact.scope
            for fact, entry in self.draft.entries.items()
            if isinstance(fact, Scope) and _marks(entry) != _marks(self.draft.before(fact))
        ]

    def _hanging_on(self, nodes: Collection[Node]) -> set[Hanging]:
        dids = [node for node in nodes if isinstance(node, Did)]
        self.draft.read(dids)
        found = set(self.state.hanging_on(nodes)) if nodes else set()
        for did in dids:
            found.update(key for key in self.draft.about[did].slots if key[0] in _HANGING)  # type: ignore[misc]
        return found

    # ---- scopes and RSEs

    def _scopes(self, scopes: Sequence[Scope]) -> None:
        self.draft.load(scopes)
        wanted: list[Key] = [key for scope in scopes for key in (scope, attachable_key(scope.scope))]
        slots = self.state.slots(wanted)
        for scope in scopes:
            home = self.reader.home(scope.scope)
            if home is None or not self.reader.standing(scope, slots.get(scope, ())):
                self.draft.put(scope, None, [])
                continue
            said = slots.get(attachable_key(scope.scope), ())
            marks = collections.marks(self.reader, said)
            entry = ScopeEntry(home, tuple(mark.dot for mark in marks))
            resolve = f"the home of {scope} says once more whether it is attachable"
            taken = (
                self.reader.beaten(MARK_RULE, attachable_key(scope.scope), marks[-1], self.reader.maximal(said), resolve) if marks else []
            )
            self.draft.put(scope, entry, taken)

    def _rses(self, rses: Sequence[Rse]) -> None:
        self.draft.load(rses)
        keys = {rse: [Attribute(rse, field) for field in (fields.PROTOCOLS, fields.ATTRIBUTES)] for rse in rses}
        slots = self.state.slots([*rses, *(key for its in keys.values() for key in its)])
        for rse in rses:
            if not self.reader.standing(rse, slots.get(rse, ())):
                self.draft.put(rse, None, [])
                continue
            (protocols, lost), (attributes, lost_too) = (self.reader.attribute(key, slots.get(key, ())) for key in keys[rse])
            entry = RseEntry(protocols.value if protocols else (), attributes.value if attributes else ())
            self.draft.put(rse, entry, lost + lost_too)

    # ---- constituents and replicas

    def _constituents(self, constituents: Sequence[Constituent]) -> None:
        """Of two shown files; else it waits, invisible (6.4)."""
        draft = self.draft
        draft.load(end for one in constituents for end in (one.archive, one.child))
        draft.read(one.child for one in constituents)
        for one in constituents:
            stands = self.reader.standing(one, draft.about[one.child].slots.get(one, ()))
            archive, child = draft.did(one.archive), draft.did(one.child)
            if not stands or archive is None or child is None:
                draft.put(one, None, [])
                continue
            fits = _is_file(archive) and _is_file(child) and one.archive != one.child
            resolve = f"its author takes it out of {one.archive}"
            winner, loser = f"{one.archive} is a {archive.identity}", f"{one.child} is a {child.identity}"
            taken = [] if fits else [Conflict(collections.TYPES_RULE, winner, loser, resolve, stamps_of(None, stands[0]))]
            draft.put(one, ConstituentEntry() if fits else None, taken)

    def _replicas(self, replicas: Sequence[Replica]) -> None:
        """Of a shown file, of its bytes, at a shown RSE."""
        draft, reader = self.draft, self.reader
        of = [(replica, replica.did, replica.rse) for replica in replicas]
        draft.load(end for _, did, rse in of for end in (did, rse))
        draft.read(did for _, did, _ in of)
        for replica, did, rse in of:
            about, entry = draft.about[did], draft.did(did)
            said = reader.value(replica, about.slots.get(replica, ()))
            if said is None or entry is None or entry.identity.type != fields.FILE or draft.now(rse) is None:
                draft.put(replica, None, [])
                continue
            words = about.slots.get(did, ())
            taken = identity.other_bytes(reader, replica, said, entry.identity, words, about.claims)
            state, lost = reader.attribute(Attribute(replica, fields.STATE), about.slots.get(Attribute(replica, fields.STATE), ()))
            shown = ReplicaEntry(said.value, state.value) if state is not None else ReplicaEntry(said.value)
            draft.put(replica, None if taken else shown, taken or lost)


def _hold(entry: Optional[Entry]) -> object:
    """What of a DID's or RSE's entry its attachments, constituents and replicas depend on."""
    return entry.identity if isinstance(entry, DidEntry) else entry is not None


def _marks(entry: Optional[Entry]) -> object:
    return entry.marks if isinstance(entry, ScopeEntry) else ()


def _is_file(entry: Optional[DidEntry]) -> bool:
    return entry is not None and entry.identity.type == fields.FILE
