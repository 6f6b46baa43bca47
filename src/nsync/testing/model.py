"""What must be shown, worked out in the most obvious way: whole logs, sets of segments, no slots, nothing incremental.

It shares nothing with what it judges but the decoding of ops and the charter's word on who may speak. It does not say what every
entry is; it says what no correct catalogue can show or leave out:

    R3.4      a DID, scope or RSE is shown iff somebody asserts it whom no Retract answers
    R3.6      a DID has the identity that its home's log puts first
    6.2, 6.5  closed and open-data state are what the statements that nobody answered say
    6.4       an attachment or replica is shown only between two things that are, and if it stands
    6         what a rule took away from these is a conflict
    6.3, 6.6  no cycle of containers, no DOI on two DIDs
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from nsync.authority.effective import Authority
from nsync.catalogue.entries import Conflict, DidEntry, Entry
from nsync.crdt import Dot
from nsync.log.segment import Segment
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Key, Replica, Rse, Scope, ends_of
from nsync.namespace.ops import Assert, Retract, Statement, decode_op
from nsync.testing.ledger import hold

End = tuple[bytes, int]
"""(author, seq of its last op): the name of a segment."""


class Said(NamedTuple):
    """One statement, and the segment that it stands in."""

    dot: Dot
    segment: End
    stamp: Any
    retract: bool
    value: Any

    @property
    def order(self) -> tuple[Any, bytes, int]:
        return (self.stamp, self.dot.author, self.dot.seq)


class Model:
    """Everything that `segments` say. They are closed: whatever one names is among them."""

    def __init__(self, authority: Authority, segments: Sequence[Segment]) -> None:
        self._authority = authority
        self._segments: dict[End, Segment] = {(s.header.author, s.header.last): s for s in segments}
        self._pasts: dict[End, frozenset[End]] = {}
        for end in sorted(self._segments, key=lambda end: self._segments[end].header.stamp):
            self._pasts[end] = self._past_of(self._segments[end])
        self._said: dict[Key, list[Said]] = defaultdict(list)
        for segment in segments:
            self._listen(segment)

    def facts(self) -> set[Fact]:
        """Everything that somebody effectively said something about."""
        return {key for key, said in self._said.items() if said and not isinstance(key, Attribute)}

    # ---- the log

    def _past_of(self, segment: Segment) -> frozenset[End]:
        """The segments before this one: its own log, its deps, and theirs. A stamp is greater than all of its past, so these are known."""
        header = segment.header
        before = [end for end in self._segments if end[0] == header.author and end[1] < header.first]
        named: list[End] = [*before, *((dep.author, dep.seq) for dep in header.deps)]
        return frozenset(named).union(*(self._pasts[end] for end in named))

    def _listen(self, segment: Segment) -> None:
        author, end = segment.header.author, (segment.header.author, segment.header.last)
        for offset, op in enumerate(segment.ops):
            for statement in decode_op(op):
                if not isinstance(statement, (Assert, Retract)):
                    continue
                value = None if isinstance(statement, Retract) else statement.value
                said = Said(Dot(author, segment.header.first + offset), end, segment.header.stamp, isinstance(statement, Retract), value)
                if self._counts(author, statement, said):
                    self._said[statement.key].append(said)

    def _counts(self, author: bytes, statement: Statement, said: Said) -> bool:
        if not self._authority.may_write(author, statement.key):
            return False
        if not self._authority.waits_for_home(author, statement):
            return True
        home = self._authority.decider(statement.key)
        return any(end[0] == home and said.segment in past for end, past in self._pasts.items())

    def _saw(self, later: Said, earlier: Said) -> bool:
        """Whether `earlier` is in the past of `later`."""
        if later.dot.author == earlier.dot.author:
            return earlier.dot.seq < later.dot.seq
        return earlier.segment in self._pasts[later.segment]

    # ---- readings

    def stands(self, key: Key) -> bool:
        """Whether an Assert of `key` is in the past of no Retract by the home or its own author (R3.4)."""
        said, home = self._said[key], self._authority.decider(key)
        retracts = [r for r in said if r.retract]
        return any(not any(self._saw(r, a) and r.dot.author in (home, a.dot.author) for r in retracts) for a in said if not a.retract)

    def unanswered(self, key: Key) -> list[Any]:
        """The values that their authors have not replaced or withdrawn, and nobody answered having seen them."""
        last: dict[bytes, Said] = {}
        for said in sorted(self._said[key]):
            last[said.dot.author] = said
        current = [said for said in last.values() if not said.retract]
        return [said.value for said in current if not any(self._saw(other, said) for other in current)]

    def identity(self, did: Did) -> Any:
        """What the home's log says or sees first (R3.6)."""
        first: dict[bytes, Said] = {}
        for said in sorted(said for said in self._said[did] if not said.retract):
            first.setdefault(said.dot.author, said)
        home = self._authority.decider(did)
        return min(first.values(), key=lambda claim: self._place(home, claim)).value

    def _place(self, home: Optional[bytes], claim: Said) -> tuple[int, int, int, Any]:
        """Where in the home's log: its own claim at its op, another's at the first op that has it in its past; the rest at the end."""
        if claim.dot.author == home:
            return (0, claim.dot.seq, 0, claim.order)
        seen = [self._segments[end].header.first for end, past in self._pasts.items() if end[0] == home and claim.segment in past]
        return (0, min(seen), 1, claim.order) if seen else (1, 0, 0, claim.order)


def check(model: Model, shown: Mapping[Fact, Entry], conflicts: Mapping[Fact, Sequence[Conflict]]) -> None:
    """Raises Broken when a catalogue shows what it must not, or leaves out what it must show."""
    facts = model.facts() | set(shown)
    for fact in facts:
        if isinstance(fact, (Did, Scope, Rse)):
            stands = model.stands(fact)
            hold(stands == (fact in shown), f"{fact} is {'not ' * stands}shown, and {'it stands' if stands else 'it does not stand'}")
    for did, entry in shown.items():
        if isinstance(did, Did) and isinstance(entry, DidEntry):
            _check_did(model, did, entry)
    for fact in facts:
        if isinstance(fact, (Attachment, Replica)):
            _check_between(model, fact, shown, conflicts)
    _check_unique([entry.doi for entry in shown.values() if isinstance(entry, DidEntry) and entry.doi is not None])
    _check_acyclic([fact for fact in shown if isinstance(fact, Attachment)])


def _check_did(model: Model, did: Did, entry: DidEntry) -> None:
    identity = model.identity(did)
    hold(entry.identity == identity, f"{did} is shown as {entry.identity}, and its home's log puts {identity} first")
    states = model.unanswered(Attribute(did, keys.OPENDATA))
    state = max(states, default=None)
    hold(entry.opendata == state, f"{did} is shown as {entry.opendata}, and what is said of it is {states}")
    closed = None if identity.type == keys.FILE else True in model.unanswered(Attribute(did, keys.CLOSED)) or state is not None
    hold(entry.closed == closed, f"{did} is shown with closed = {entry.closed}, and it is {closed}")


def _check_between(
    model: Model, fact: Attachment | Replica, shown: Mapping[Fact, Entry], conflicts: Mapping[Fact, Sequence[Conflict]]
) -> None:
    possible = model.stands(fact) and all(end in shown for end in ends_of(fact))
    hold(possible or fact not in shown, f"{fact} is shown, and it is retracted or one of its ends is not there")
    if isinstance(fact, Attachment) and possible and fact not in shown:
        hold(bool(conflicts.get(fact)), f"{fact} is not shown, and no conflict says why")


def _check_unique(dois: Sequence[str]) -> None:
    twice = sorted({doi for doi in dois if dois.count(doi) > 1})
    hold(not twice, f"the DOIs {twice} are on several DIDs")


def _check_acyclic(edges: Iterable[Attachment]) -> None:
    left = set(edges)
    while True:
        parents = {edge.parent for edge in left}
        kept = {edge for edge in left if edge.child in parents}
        if kept == left:
            break
        left = kept
    hold(not left, f"these attachments make a cycle: {', '.join(sorted(map(str, left)))}")
