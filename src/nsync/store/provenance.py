"""Who said what about a DID, and how far that has come: for `nsync log` and `nsync did status`.

The statements come in the order of their stamps. A stamp is greater than all that its author had seen (R3.7), so this is an order in
which they can be applied, and the same at every instance; in which order they came here, no instance keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Optional

from sqlalchemy import select

from nsync.authority.charter import Instance, Place
from nsync.authority.rulings import VOID, WAITING
from nsync.catalogue.explain import Explanation
from nsync.clock import Stamp
from nsync.log.forks import Mark, holds, line_to
from nsync.log.stored import Head
from nsync.namespace import fields
from nsync.namespace.keys import Did, Key, ends_of, fact_of, key_of
from nsync.store import schema
from nsync.store.index import EDGE, HANGING, ITSELF
from nsync.store.lines import SqlLines
from nsync.store.state import SqlState

_ABOUT, _SEGMENT = schema.about.c, schema.segment.c

EFFECTIVE, SUPERSEDED = "effective", "superseded"
_BEGINS = {"waits": WAITING, "void": VOID, "superseded": SUPERSEDED, "silenced": SUPERSEDED, "answered": SUPERSEDED}
"""How the text of what became of a statement begins (catalogue.explain)."""


class Told(NamedTuple):
    """A statement about a DID, or about what hangs on it."""

    author: str
    seq: int
    time: str
    about: Key
    said: str
    standing: str
    """effective, waits, void or superseded."""
    why: str


class Spoken(NamedTuple):
    """The newest ops that speak of a DID, the oldest first."""

    marks: tuple[Mark, ...]
    keys: tuple[Key, ...]
    """What they say something about: the DID, its attributes, and what hangs on it."""
    cut: bool
    """Whether there are more."""


def spoken_of(state: SqlState, did: Did, newest: int) -> Spoken:
    """The `newest` ops that speak of `did`, by their stamps."""
    numbers, found = state.statements.numbers, set()
    cut = False
    for branch in state.lines.branches:
        for kind in (ITSELF, EDGE, HANGING):
            query = select(_ABOUT.seq).where(_ABOUT.node == numbers.node(did, kind), _ABOUT.branch == branch).distinct()
            seqs = state.connection.execute(query.order_by(_ABOUT.seq.desc()).limit(newest + 1)).scalars().all()
            cut = cut or len(seqs) > newest
            found |= {Mark(branch, seq) for seq in seqs}
    stamped: list[tuple[Stamp, Mark]] = []
    said: dict[Mark, list[Key]] = {}
    for mark, op in state.statements.ops(found):
        its = [key_of(key) for key in op.says if _concerns(key_of(key), did)]
        if its:
            stamped.append((op.stamp, mark))
            said[mark] = its
    marks = [mark for _, mark in sorted(stamped)]
    kept = marks[-newest:]
    keys = dict.fromkeys(key for mark in kept for key in said[mark])
    return Spoken(tuple(kept), tuple(keys), cut or len(marks) > newest)


def told(state: SqlState, spoken: Spoken) -> list[Told]:
    """What they say, and what became of it."""
    places = {mark: place for place, mark in enumerate(spoken.marks)}
    found = []
    for key in spoken.keys:
        marks = [said.mark for said, _ in state.statements.history(key)]  # in the order of the lines
        for mark, line in zip(marks, state.explain(key).lines):
            if mark in places:
                standing = _BEGINS.get(line.standing.split(maxsplit=1)[0].rstrip(":"), EFFECTIVE)
                found.append((places[mark], Told(line.author, line.seq, line.time, key, line.said, standing, line.standing)))
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], str(pair[1].about)))]


def explained(state: SqlState, did: Did, field: Optional[str], newest: int) -> list[Explanation]:
    """Why the catalogue shows what it shows of `did`, and of each field of which something was said, or of `field` alone."""
    keys = spoken_of(state, did, newest).keys
    own = [key for key in keys if fact_of(key) == did]
    wanted = [key for key in own if field is None or (key[0] == fields.ATTRIBUTE and key[1] == field)]
    return [state.explain(key) for key in sorted({did, *wanted} if field is None else wanted)]


def _concerns(key: Key, did: Did) -> bool:
    fact = fact_of(key)
    return fact == did or did in ends_of(fact)


# ---- how far it has come


class Way(NamedTuple):
    """How far an instance is with the changesets that speak of a DID."""

    said: int
    """Of these, its own."""
    has: Optional[int]
    """Of how many it told that it has them; None for one that told nothing."""
    saw: int
    """How many lie in the past of what it signed last, and is here."""


class Progress(NamedTuple):
    """The changesets that speak of a DID, and where they are."""

    changesets: int
    settled: int
    """That can no longer be voided: the home's own, acknowledged by it, or below the floor."""
    ways: Mapping[str, Way]


def progress(state: SqlState, did: Did, spoken: Spoken, told: Mapping[str, Optional[Sequence[Head]]]) -> Progress:
    """How far each instance of the charter is; `told`: the heads that each peer told, where it is believed."""
    lines = state.lines
    ends = sorted({_end(state, mark) for mark in spoken.marks})
    saw = {one.name: _seen_by(lines, one) for one in lines.charter.instances}
    home = lines.charter.home(did.scope)
    floor = lines.usable_floors[-1] if lines.usable_floors else None
    below = [mark for head in floor.heads if (mark := lines.mark(head.author, Place(head.seq, head.hash)))] if floor is not None else []
    settled = [end for end in ends if (home is not None and _holds(lines, saw[home.name], end)) or _holds(lines, below, end)]
    ways = {}
    for one in lines.charter.instances:
        authors = {life.author for life in one.incarnations}
        heads = told.get(one.name)
        ways[one.name] = Way(
            said=sum(lines.branches[end.branch].author in authors for end in ends),
            has=None if heads is None else sum(_has(lines, heads, end) for end in ends),
            saw=sum(_holds(lines, saw[one.name], end) for end in ends),
        )
    return Progress(len(ends), len(settled), ways)


def _end(state: SqlState, mark: Mark) -> Mark:
    """The end of the changeset of an op."""
    query = select(_SEGMENT.last).where(_SEGMENT.branch == mark.branch, _SEGMENT.last >= mark.seq, _SEGMENT.commits)
    last = state.connection.execute(query.order_by(_SEGMENT.last).limit(1)).scalar()
    return Mark(mark.branch, mark.seq if last is None else last)


def _seen_by(lines: SqlLines, instance: Instance) -> list[Mark]:
    """What the log of an instance has in its past, as far as it is applied here, itself included."""
    own = [Mark(branch.id, branch.applied) for life in instance.incarnations for branch in lines.of(life.author) if branch.applied]
    return own + [Mark(branch, seq) for mark in own for branch, seq in lines.past(mark).items()]


def _holds(lines: SqlLines, seen: Collection[Mark], end: Mark) -> bool:
    return any(holds(line_to(lines.branches_tree, mark), end) for mark in seen)


def _has(lines: SqlLines, heads: Sequence[Head], end: Mark) -> bool:
    """Whether who has these heads has `end`. What is not stored here is taken to go on from it."""
    author = lines.branches[end.branch].author
    for head in heads:
        if head.author == author and head.seq >= end.seq:
            mark = lines.mark(author, Place(head.seq, head.hash))
            if mark is None or holds(line_to(lines.branches_tree, mark), end):
                return True
    return False
