"""Statements read through the index: slots, claims, and everything that was ever said about a key (R3.3, R3.6).

Slot (key, author) is the effective statement with the greatest seq on the author's line. The newest one is looked at first; only where it
does not count (void, or waiting for the home) are older ones fetched, a few more each time. So what a question costs does not grow
with what was said before, but where that is void.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from sqlalchemy import Connection, func, select

from nsync.authority.rulings import Ruling, Rulings
from nsync.catalogue.opendata import Name, name_of
from nsync.clock import Stamp
from nsync.crdt import Dot, Slot
from nsync.log.forks import Mark
from nsync.log.segment import GONE
from nsync.namespace import fields
from nsync.namespace.keys import Did, Key, ends_of, key_of
from nsync.namespace.ops import STATEMENTS_KIND, wire_op
from nsync.store import schema
from nsync.store.database import chunks
from nsync.store.index import EDGE, EDGE_FIRST, ITSELF, Numbers, name_node
from nsync.store.lines import SqlLines

_ABOUT, _OP = schema.about.c, schema.op.c

OPS_KEPT = 1 << 15
"""Ops of one transaction that are remembered decoded: one op often speaks of the several keys that are asked for. Some 30 MB at most."""


class Found(NamedTuple):
    """A statement about a key, wherever it stands."""

    mark: Mark
    slot: Slot


class Op(NamedTuple):
    """An op, decoded."""

    stamp: Stamp
    says: Mapping[Any, Any]
    """Wire key → value, or RETRACT."""


RETRACT = object()


class Statements:
    """What the ops say about keys, under the rulings of one transaction."""

    def __init__(self, connection: Connection, lines: SqlLines, rulings: Rulings, numbers: Numbers) -> None:
        self._connection = connection
        self._lines = lines
        self._rulings = rulings
        self.numbers = numbers
        self._ops: dict[Mark, Op] = {}

    def ruled_by(self, rulings: Rulings) -> None:
        """Judge by other rulings from here on: the logs have moved."""
        self._rulings = rulings

    # ---- slots and claims

    def slots(self, wanted: Collection[Key]) -> dict[Key, list[Slot]]:
        """The effective slots of each key that has any, in the order of authors."""
        return self._ends(wanted, newest=True)

    def claims(self, dids: Collection[Did]) -> dict[Did, list[Slot]]:
        """Each author's first effective claim of each DID's identity."""
        return self._ends(dids, newest=False)  # type: ignore[return-value,arg-type]

    def _ends(self, wanted: Collection[Key], newest: bool) -> dict[Key, list[Slot]]:
        by_number: dict[int, list[Key]] = {}
        for key in wanted:
            by_number.setdefault(self.numbers.about(key), []).append(key)
        candidates: dict[tuple[int, bytes], Mark] = {}
        last = func.max(_ABOUT.seq) if newest else func.min(_ABOUT.seq)
        for chunk in chunks(sorted(by_number)):
            query = select(_ABOUT.key, _ABOUT.branch, last).where(_ABOUT.key.in_(chunk)).group_by(_ABOUT.key, _ABOUT.branch)
            for number, branch, seq in self._connection.execute(query):
                mark, author = Mark(branch, seq), self._lines.branches[branch].author
                held = candidates.get((number, author))
                if held is None or (mark.seq > held.seq) == newest:
                    candidates[number, author] = mark
        self.load(candidates.values())
        found: dict[Key, list[Slot]] = {}
        for (number, author), mark in sorted(candidates.items(), key=lambda item: item[0][1]):
            for key in by_number[number]:
                slot = self._counts(key, mark, newest) or next(self._others(key, number, author, mark, newest), None)
                if slot is not None:
                    found.setdefault(key, []).append(slot)
        return found

    def _counts(self, key: Key, mark: Mark, newest: bool) -> Optional[Slot]:
        """The statement about `key` at `mark`, if there is one that counts."""
        slot = self._slot(key, mark)
        if slot is None or (slot.retract and not newest) or not self._lines.stands(mark):
            return None
        return slot if self._rulings.ruling(key, slot).effective else None

    def _others(self, key: Key, number: int, author: bytes, after: Mark, newest: bool) -> Iterator[Slot]:
        """What counts beyond the first candidate, in order."""
        branches = [branch.id for branch in self._lines.of(author)]
        size, seq = 2, after.seq
        while True:
            size = min(size * 4, 4096)
            query = select(_ABOUT.branch, _ABOUT.seq).where(_ABOUT.key == number, _ABOUT.branch.in_(branches))
            query = (
                query.where(_ABOUT.seq <= seq).order_by(_ABOUT.seq.desc())
                if newest
                else query.where(_ABOUT.seq >= seq).order_by(_ABOUT.seq)
            )
            marks = [Mark(*row) for row in self._connection.execute(query.limit(size))]
            self.load(marks)
            yield from (slot for mark in marks if (slot := self._counts(key, mark, newest)) is not None)
            if len(marks) < size or marks[-1].seq == seq:
                return
            seq = marks[-1].seq

    def _slot(self, key: Key, mark: Mark) -> Optional[Slot]:
        if mark not in self._ops:
            self.load([mark])
        op = self._ops.get(mark)
        return self.slot_of(key, mark, op) if op is not None and key in op.says else None  # else another key with the same number

    def slot_of(self, key: Key, mark: Mark, op: Op) -> Slot:
        """The statement about `key` that `op`, which lies at `mark`, makes."""
        value = op.says[key]
        retract = value is RETRACT
        return Slot(
            Dot(self._lines.branches[mark.branch].author, mark.seq), op.stamp, retract, None if retract else fields.typed(key, value)
        )

    def newest_below(self, key: Key, author: bytes, until: int) -> Optional[Slot]:
        """The newest statement of `author` about `key` that counts and lies at or before `until`."""
        return next(self._others(key, self.numbers.about(key), author, Mark(0, until), newest=True), None)

    def last_words(self, author: bytes, wanted: Collection[Key]) -> dict[Key, Slot]:
        """The newest statement of `author` about each of `wanted`, whether it counts or not."""
        branches = [part.branch for part in self._lines.line(author)]
        by_number: dict[int, list[Key]] = {}
        for key in wanted:
            by_number.setdefault(self.numbers.about(key), []).append(key)
        marks: dict[int, Mark] = {}
        for chunk in chunks(sorted(by_number)):
            query = select(_ABOUT.key, _ABOUT.branch, func.max(_ABOUT.seq)).where(_ABOUT.key.in_(chunk), _ABOUT.branch.in_(branches))
            for number, branch, seq in self._connection.execute(query.group_by(_ABOUT.key, _ABOUT.branch)):
                if number not in marks or marks[number].seq < seq:
                    marks[number] = Mark(branch, seq)
        self.load(marks.values())
        found = {key: self._slot(key, mark) for number, mark in marks.items() for key in by_number[number]}
        return {key: slot for key, slot in found.items() if slot is not None}

    # ---- everything

    def keys_of(self, dids: Iterable[Did]) -> set[Key]:
        """The keys of `dids` and of all their attributes about which something is said."""
        wanted = set(dids)
        ops = self._listed((low := self.numbers.node(did) | ITSELF, low + EDGE_FIRST) for did in wanted)
        return {key_of(key) for op in ops for key in op.says if (key[2:] if key[0] == fields.ATTRIBUTE else key) in wanted}

    def edges_of(self, nodes: Iterable[Any]) -> set[Any]:
        """Every attachment, constituent and replica about which something is said, with one of `nodes` at either end."""
        wanted = set(nodes)
        anchored = [self.numbers.node(node) | EDGE for node in wanted]
        hanging = [self.numbers.hanging(node) for node in wanted]
        ops = self._listed([*((low, low + EDGE_FIRST) for low in anchored), *((low, low + 1) for low in hanging)])
        facts = {key_of(key[2:] if key[0] == fields.ATTRIBUTE else key) for op in ops for key in op.says}
        return {fact for fact in facts if not wanted.isdisjoint(ends_of(fact))}

    def asking(self, names: Iterable[Name]) -> set[Did]:
        """Every DID of which an effective statement says that it bears one of `names`."""
        wanted = set(names)
        ops = self._listed((low := self.numbers.hanging(name_node(name)), low + 1) for name in wanted)
        keys = {key_of(key) for op in ops for key, value in op.says.items() if value is not RETRACT and name_of(key, value) in wanted}
        return {key.fact for key, slots in self.slots(keys).items() if any(name_of(key, slot.value) in wanted for slot in slots)}  # type: ignore[union-attr,misc]

    def _listed(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Op]:
        """The ops that are listed under the numbers from the first to before the second of each of `ranges`."""
        marks: set[Mark] = set()
        for low, high in ranges:
            query = select(_ABOUT.branch, _ABOUT.seq).where(_ABOUT.key >= low, _ABOUT.key < high)
            marks |= {Mark(*row) for row in self._connection.execute(query)}
        return (op for _, op in self.ops(marks))

    def history(self, key: Key) -> list[tuple[Found, Optional[Ruling]]]:
        """Every applied statement about `key`, oldest first, with its ruling; None for one on a branch that does not stand."""
        query = select(_ABOUT.branch, _ABOUT.seq).where(_ABOUT.key == self.numbers.about(key))
        marks = [Mark(*row) for row in self._connection.execute(query)]
        self.load(marks)
        found = [Found(mark, slot) for mark in marks if (slot := self._slot(key, mark)) is not None]
        return [
            (one, self._rulings.ruling(key, one.slot) if self._lines.stands(one.mark) else None)
            for one in sorted(found, key=lambda one: (*one.slot.order, one.mark.branch))
        ]

    # ---- ops

    def remember(self, mark: Mark, stamp: Stamp, wire: Sequence[Any]) -> None:
        """Keep an op that was decoded already."""
        if len(self._ops) >= OPS_KEPT:
            self._ops.clear()
        self._ops[mark] = _op(stamp, wire)

    def forget_ops(self) -> None:
        """Read ops anew: some are gone."""
        self._ops.clear()

    def load(self, marks: Iterable[Mark]) -> None:
        """Fetch and decode the ops at `marks` that are not remembered."""
        missing = sorted({mark for mark in marks if mark not in self._ops})
        if len(self._ops) + len(missing) > OPS_KEPT:
            self._ops.clear()
            missing = sorted(set(marks))
        for mark, stamp, raw in self.fetch(missing):
            self._ops[mark] = _op(stamp, wire_op(raw))

    def ops(self, marks: Iterable[Mark]) -> Iterator[tuple[Mark, Op]]:
        """The ops at `marks`, decoded, however many they are."""
        for chunk in chunks(sorted(set(marks)), OPS_KEPT // 2):
            self.load(chunk)
            yield from ((mark, self._ops[mark]) for mark in chunk if mark in self._ops)

    def fetch(self, marks: Collection[Mark]) -> Iterator[tuple[Mark, Stamp, bytes]]:
        """The ops at `marks` as they are stored, without those that compaction took."""
        by_branch: dict[int, list[int]] = {}
        for mark in marks:
            by_branch.setdefault(mark.branch, []).append(mark.seq)
        for branch, seqs in by_branch.items():
            for chunk in chunks(seqs):
                query = select(_OP.seq, _OP.stamp_ms, _OP.stamp_logical, _OP.raw).where(_OP.branch == branch, _OP.seq.in_(chunk))
                for seq, ms, logical, raw in self._connection.execute(query):
                    if raw[:1] != GONE:
                        yield Mark(branch, seq), Stamp(ms, logical), raw


def _op(stamp: Stamp, wire: Sequence[Any]) -> Op:
    if wire[0] != STATEMENTS_KIND:
        return Op(stamp, {})
    return Op(stamp, {said[0]: said[1] if len(said) == 2 else RETRACT for said in wire[1:]})
