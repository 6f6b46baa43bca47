"""Attachments: which of them show, given what changed (DESIGN 6.1-6.4, R5.5; each rule in `collections`).

The rules are applied in the order that `collections` gives. Most look at one attachment alone. Two look at others, and only at those
that the change can concern: a container's other attachments matter only if it is mixed or becomes so, or may stop to hold
anything, which the `content` of its entry tells; and cycles only within the component of a changed attachment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

from nsync.catalogue import collections, cycles
from nsync.catalogue.collections import Candidate
from nsync.catalogue.entries import AttachmentEntry, Conflict, DidEntry, ScopeEntry
from nsync.catalogue.rules import attachable_key, close_key, open_data_key
from nsync.catalogue.state import Draft
from nsync.crdt import Slot
from nsync.namespace.fields import CONTAINER
from nsync.namespace.keys import Attachment, Did, Scope

_SHOWN = AttachmentEntry()


def derive_attachments(draft: Draft, edges: Collection[Attachment], complete: Collection[Did]) -> None:
    """The entries of `edges`, and of what they show or hide. All attachments of the collections in `complete` are among `edges`."""
    _Attachments(draft, complete).run(set(edges))


def seals_of(draft: Draft, parents: Iterable[Did]) -> dict[Did, list[Slot]]:
    """What closed each of the loaded collections `parents` that are closed."""
    closed = [parent for parent in parents if _is_closed(draft.did(parent))]
    draft.read(closed)
    found = {}
    for parent in closed:
        slots = draft.about[parent].slots
        found[parent] = collections.seals(draft.reader, slots.get(close_key(parent), ()), slots.get(open_data_key(parent), ()))
    return found


class _Attachments:
    def __init__(self, draft: Draft, complete: Collection[Did]) -> None:
        self.draft = draft
        self.reader = draft.reader
        self.complete = set(complete)
        self.edges: set[Attachment] = set()
        """Looked at so far."""
        self.candidates: dict[Attachment, Candidate] = {}
        """Those of them that only the rule against cycles may still hide."""

    def run(self, edges: set[Attachment]) -> None:
        on_cycles: set[Attachment] = set()
        while edges:
            fresh = self._settle(edges)
            on_cycles |= cycles.affected(self._between_containers(fresh), self._below, self._above)
            edges = on_cycles - self.edges
        orders = {edge: self.candidates[edge].said.order for edge in on_cycles if edge in self.candidates}
        for edge in cycles.hidden(orders):
            self.draft.put(edge, None, [collections.cycle_conflict(self.reader, edge, self.candidates[edge].said)])

    # ---- all rules but the one against cycles

    def _settle(self, edges: set[Attachment]) -> set[Attachment]:
        """Put `edges` into the draft, and with them the rest of the containers in which they decide what shows; returns all of these."""
        by_parent = _by_parent(edges)
        found = self._judge(by_parent)
        containers = {parent: its for parent, its in by_parent.items() if _is_container(self.draft.did(parent))}
        wanted = [parent for parent, its in containers.items() if self._needs_the_rest(parent, its, found)]
        siblings = self._attachments_in(wanted) - edges
        found.update(self._judge(_by_parent(siblings)))
        for parent, its in _by_parent(siblings).items():
            containers[parent] += its
        self.complete.update(wanted)
        self.edges |= edges | siblings
        self.candidates.update(found)
        for parent, its in containers.items():
            self._choose_content(parent, {edge: found[edge] for edge in its if edge in found})
        return edges | siblings

    def _judge(self, by_parent: Mapping[Did, Collection[Attachment]]) -> dict[Attachment, Candidate]:
        """Those attachments that the rules about one alone show; all of them are put into the draft."""
        draft = self.draft
        of = [(edge, edge.child) for its in by_parent.values() for edge in its]
        draft.load([*by_parent, *(child for _, child in of)])
        slots = draft.state.slots([edge for edge, child in of if child not in draft.about])
        seals = seals_of(draft, by_parent)
        marks = self._marks({child.scope for _, child in of})
        found: dict[Attachment, Candidate] = {}
        for parent, its in by_parent.items():
            above = draft.did(parent)
            for edge in its:
                child = edge.child
                stands = self.reader.standing(edge, (draft.about[child].slots if child in draft.about else slots).get(edge, ()))
                below = draft.did(child)
                if not stands or above is None or below is None:
                    draft.put(edge, None, [])  # withdrawn, or dangling: it waits, invisible (6.4)
                    continue
                tops = self.reader.maximal(stands) if len(stands) > 1 else stands
                said = min(tops, key=lambda slot: slot.order) if len(tops) > 1 else tops[0]
                taken = collections.type_conflict(edge, above.identity, below.identity) or self._taken(
                    edge, tops, said, marks.get(child.scope, ()), seals.get(parent, ())
                )
                if taken is None:
                    found[edge] = Candidate(said, below.identity.type)
                draft.put(edge, _SHOWN if taken is None else None, [] if taken is None else [taken])
        return found

    def _taken(
        self, edge: Attachment, tops: Sequence[Slot], said: Slot, marks: Sequence[Slot], seals: Sequence[Slot]
    ) -> Optional[Conflict]:
        mark = collections.forbidding(self.reader, tops, marks) if marks else None
        if mark is not None:
            return collections.mark_conflict(self.reader, edge, mark, said)
        seal = collections.unsealed(self.reader, tops, seals) if seals else None
        return collections.closed_conflict(self.reader, edge, seal, said) if seal is not None else None

    def _marks(self, scopes: Collection[str]) -> dict[str, list[Slot]]:
        """What makes those scopes not attachable that are not."""
        facts = [Scope(scope) for scope in scopes]
        self.draft.load(facts)
        entries = {fact.scope: self.draft.now(fact) for fact in facts}
        marked = {scope: attachable_key(scope) for scope, entry in entries.items() if isinstance(entry, ScopeEntry) and entry.marks}
        slots = self.draft.state.slots([*marked.values()])
        return {scope: collections.marks(self.reader, slots.get(key, ())) for scope, key in marked.items()}

    # ---- mixed containers (6.1)

    def _needs_the_rest(self, parent: Did, its: Collection[Attachment], found: Mapping[Attachment, Candidate]) -> bool:
        """Whether what a container holds hangs on attachments other than `its`."""
        held = self._content(parent)
        if parent in self.complete or held == "":
            return False
        holds = {found[edge].holds for edge in its if edge in found}
        return len(held) > 1 or bool(holds - {held}) or self._may_be_lost(held, [edge for edge in its if edge not in found])

    def _may_be_lost(self, held: str, edges: Collection[Attachment]) -> bool:
        """Whether one of `edges`, which show no more, did so or was hidden by a cycle only."""
        self.draft.load(edges)
        return any(held == CONTAINER or self.draft.before(edge) is not None for edge in edges)

    def _choose_content(self, parent: Did, its: Mapping[Attachment, Candidate]) -> None:
        entry = self.draft.did(parent)
        assert entry is not None
        content, deciding = collections.content(its.items())
        if parent not in self.complete:  # the others hold the same, or there are none
            content = entry.content or content
        if content != entry.content:
            self.draft.entries[parent] = entry._replace(content=content)
        if len(content) > 1 and deciding is not None:
            for edge, conflict in collections.mixed_conflicts(self.reader, its, deciding).items():
                self.draft.put(edge, None, [conflict])
                del self.candidates[edge]

    def _content(self, did: Did) -> str:
        entry = self.draft.did(did)
        return entry.content if entry is not None else ""

    # ---- the neighbourhood that a cycle can lie in (6.3)

    def _between_containers(self, edges: Collection[Attachment]) -> set[Attachment]:
        """Those of `edges` that are, or were, attachments of containers to containers which hold such."""
        by_parent = _by_parent(edges)
        self.draft.load(by_parent)
        of = [(edge, edge.child) for parent, its in by_parent.items() if self._may_hold_containers(parent) for edge in its]
        self.draft.load(child for _, child in of)
        return {edge for edge, child in of if self._may_be_container(child)}

    def _may_hold_containers(self, did: Did) -> bool:
        return any(entry is not None and CONTAINER in entry.content for entry in (self.draft.did(did), self.draft.was(did)))

    def _may_be_container(self, did: Did) -> bool:
        return _is_container(self.draft.did(did)) or _is_container(self.draft.was(did))

    def _below(self, dids: Collection[Did]) -> set[Attachment]:
        return self._between_containers(self._attachments_in([did for did in dids if self._may_hold_containers(did)]))

    def _above(self, dids: Collection[Did]) -> set[Attachment]:
        self.draft.read(dids)
        return self._between_containers([key for did in dids for key in self.draft.about[did].slots if isinstance(key, Attachment)])

    def _attachments_in(self, dids: Collection[Did]) -> set[Attachment]:
        return {fact for fact in self.draft.state.hanging_on(dids) if isinstance(fact, Attachment)} if dids else set()


def _by_parent(edges: Collection[Attachment]) -> dict[Did, list[Attachment]]:
    found: dict[tuple[str, str], list[Attachment]] = {}
    for edge in edges:
        found.setdefault(edge[1:3], []).append(edge)  # the parent's scope and name
    return {Did(*parent): its for parent, its in found.items()}


def _is_closed(entry: Optional[DidEntry]) -> bool:
    return entry is not None and bool(entry.closed)


def _is_container(entry: Optional[DidEntry]) -> bool:
    return entry is not None and entry.identity.type == CONTAINER
