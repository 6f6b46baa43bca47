"""Statements read through the index: slots, claims, and everything that was ever said about a key (R3.3, R3.6).

Slot (key, author) is the effective statement with the greatest seq on the author's line. The newest one is looked at first; only where it
does not count (void, or waiting for the home) are older ones fetched, a few more each time, and none of whom nobody ever gave a say.
So what a question costs does not grow with what was said before, but where that is void by a revocation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from sqlalchemy import Connection, Row, select

from nsync.authority.rulings import Ruling, Rulings
from nsync.catalogue.opendata import Name, name_of
from nsync.catalogue.state import About, other_end
from nsync.clock import Stamp
from nsync.crdt import Dot, Slot
from nsync.log.forks import Mark
from nsync.log.segment import GONE
from nsync.namespace import fields
from nsync.namespace.keys import Did, Key, anchor_of, key_of
from nsync.namespace.ops import STATEMENTS_KIND, stored_op
from nsync.store import schema
from nsync.store.database import chunks, is_among
from nsync.store.index import EDGE, HANGING, ITSELF, Listed, Numbers, name_node
from nsync.store.lines import SqlLines

_ABOUT, _OP = schema.about.c, schema.op.c

OPS_KEPT = 1 << 15
"""Ops of one transaction that are remembered decoded: one op often speaks of several keys that are asked for."""
OPS_BYTES_MAX = 16 << 20
"""Of these, as they are stored; one has up to 64 KiB. Decoded OPS_KEPT usual ones have some 35 MB, and whatever anybody makes up to 250."""

RETRACT = None
"""In the place of a value, which is never None."""


class Op(NamedTuple):
    """An op, decoded."""

    stamp: Stamp
    says: Mapping[Any, Any]
    """Wire key → value, RETRACT where there is none."""
    size: int
    """In bytes, as it is stored."""


class Said(NamedTuple):
    """A statement, wherever it stands."""

    mark: Mark
    slot: Slot


class _Ends(NamedTuple):
    """The newest and the oldest op of one author that are listed in one place."""

    newest: Mark
    oldest: Mark


class Statements:
    """What the ops say about keys, under the rulings of one transaction."""

    def __init__(self, connection: Connection, lines: SqlLines, rulings: Rulings, numbers: Numbers) -> None:
        self._connection = connection
        self._lines = lines
        self._rulings = rulings
        self._ops: dict[Mark, Op] = {}
        self._bytes = 0
        self.numbers = numbers

    def ruled_by(self, rulings: Rulings) -> None:
        """Judge by other rulings from here on: the logs have moved."""
        self._rulings = rulings

    # ---- slots and claims

    def slots(self, wanted: Collection[Key]) -> dict[Key, list[Slot]]:
        """The effective slots of each key that has any, in the order of authors."""
        places = {self.numbers.about(key): key for key in wanted}
        ends = self._ends("a.node = t.x AND a.key = t.y", list(places))
        return self._pick({places[place]: its for place, its in ends.items() if place in places})

    def about(self, dids: Collection[Did]) -> dict[Did, About]:
        """All that counts about each DID and what is anchored at it."""
        wanted = set(dids)
        nodes = [Listed(self.numbers.node(did, kind), 0) for did in wanted for kind in (ITSELF, EDGE)]
        ends = self._ends("a.node = t.x", nodes)
        newest = {one.newest for its in ends.values() for one in its.values()}
        self.load(newest.union(one.oldest for place, its in ends.items() if place.key == 0 for one in its.values()))
        keyed: dict[Key, Mapping[bytes, _Ends]] = {}
        for mark in newest:
            for key in self._op(mark).says:
                its = ends.get(self.numbers.about(key))
                if its is not None and anchor_of(key) in wanted:
                    keyed[key_of(key)] = its
        found: dict[Did, dict[Key, Sequence[Slot]]] = {did: {} for did in wanted}
        for key, slots in self._pick(keyed).items():
            found[anchor_of(key)][key] = slots  # type: ignore[index]
        return {did: About(slots, self._claims(did, keyed.get(did, {}), slots.get(did, ()))) for did, slots in found.items()}

    def _claims(self, did: Did, its: Mapping[bytes, _Ends], slots: Sequence[Slot]) -> list[Slot]:
        """Each author's first claim that counts: where it said one thing only, its slot."""
        if all(one.oldest == one.newest for one in its.values()):
            return [slot for slot in slots if not slot.retract]
        first = (self._first(did, author, its[author].oldest, newest=False) for author in sorted(its))
        return [slot for slot in first if slot is not None]

    def _ends(self, match: str, places: Sequence[Listed]) -> dict[Listed, dict[bytes, _Ends]]:
        """For each place, by author, the ends of what is listed there."""
        found: dict[Listed, dict[bytes, _Ends]] = {}
        columns = "a.node, a.key, a.branch, max(a.seq) AS newest, min(a.seq) AS oldest"
        for row in self._listed(columns, match, places, "GROUP BY a.node, a.key, a.branch"):
            its = found.setdefault(Listed(row.node, row.key), {})
            author = self._lines.branches[row.branch].author
            newest, oldest = Mark(row.branch, row.newest), Mark(row.branch, row.oldest)
            held = its.get(author)
            if held is not None:
                newest = max(held.newest, newest, key=lambda mark: mark.seq)
                oldest = min(held.oldest, oldest, key=lambda mark: mark.seq)
            its[author] = _Ends(newest, oldest)
        return found

    def _pick(self, keyed: Mapping[Key, Mapping[bytes, _Ends]]) -> dict[Key, list[Slot]]:
        """Of each key and author the newest statement that counts."""
        self.load({one.newest for its in keyed.values() for one in its.values()})
        found: dict[Key, list[Slot]] = {}
        for key, its in keyed.items():
            slots = [self._first(key, author, its[author].newest, newest=True) for author in sorted(its)]
            if counting := [slot for slot in slots if slot is not None]:
                found[key] = counting
        return found

    def _first(self, key: Key, author: bytes, mark: Mark, newest: bool) -> Optional[Slot]:
        """The first statement that counts from `mark` on: downwards for the newest, upwards for the oldest Assert."""
        found = self._counts(key, mark, newest)
        if found is not None or not self._rulings.may_count(author, key):
            return found
        return next(self._others(key, author, mark.seq, newest), None)

    def _counts(self, key: Key, mark: Mark, newest: bool) -> Optional[Slot]:
        """The statement about `key` at `mark`, if there is one that counts."""
        op = self._op(mark)
        if key not in op.says or not self._lines.stands(mark):
            return None
        slot = self.slot_of(key, mark, op)
        if slot.retract and not newest:
            return None
        return slot if self._rulings.ruling(key, slot).effective else None

    def _others(self, key: Key, author: bytes, seq: int, newest: bool) -> Iterator[Slot]:
        """What counts from `seq` on, in order."""
        line = self._lines.line(author)
        for part in reversed(line) if newest else line:
            yield from self._in_part(key, part, seq, newest)

    def _in_part(self, key: Key, part: Mark, seq: int, newest: bool) -> Iterator[Slot]:
        """What counts from `seq` on in one part of a line."""
        place, size, last = self.numbers.about(key), 2, seq + 1 if newest else seq - 1
        query = select(_ABOUT.seq).where(_ABOUT.node == place.node, _ABOUT.key == place.key, _ABOUT.branch == part.branch)
        ordered = query.where(_ABOUT.seq <= part.seq).order_by(_ABOUT.seq.desc() if newest else _ABOUT.seq)
        while True:
            size = min(size * 4, 4096)
            page = ordered.where(_ABOUT.seq < last if newest else _ABOUT.seq > last).limit(size)
            marks = [Mark(part.branch, found) for found in self._connection.execute(page).scalars()]
            self.load(marks)
            yield from (slot for mark in marks if (slot := self._counts(key, mark, newest)) is not None)
            if len(marks) < size:
                return
            last = marks[-1].seq

    def superseded(self, ops: Mapping[Mark, Op], author: bytes, until: int) -> set[Mark]:
        """Those of `ops`, all on `author`'s line, in which it superseded every statement: it said something later about the key, which
        counts and lies at or before `until`. A first claim never is (R3.6)."""
        maybe = {mark: op for mark, op in ops.items() if op.says}
        ends = self._ends_below({next(iter(op.says)) for op in maybe.values()}, author, until)
        maybe = {mark: op for mark, op in maybe.items() if mark.seq < ends[next(iter(op.says))].newest.seq}  # of most nothing is left
        ends.update(self._ends_below({key for op in maybe.values() for key in op.says}, author, until))
        maybe = {mark: op for mark, op in maybe.items() if all(mark.seq < ends[key].newest.seq for key in op.says)}
        self.load({ends[key].newest for op in maybe.values() for key in op.says})
        newest: dict[Any, int] = {}
        for key in {key for op in maybe.values() for key in op.says}:
            found = self._first(key_of(key), author, ends[key].newest, newest=True)
            newest[key] = found.dot.seq if found is not None else 0
        return {
            mark
            for mark, op in maybe.items()
            if all(mark.seq < newest[key] and not self._claims_first(key, mark, author, ends[key].oldest) for key in op.says)
        }

    def _claims_first(self, key: Any, mark: Mark, author: bytes, oldest: Mark) -> bool:
        """Whether the statement about `key` at `mark` is the author's first claim that counts."""
        if key[0] != fields.DID:
            return False
        found = self._first(key_of(key), author, oldest, newest=False)
        return found is not None and found.dot.seq == mark.seq

    def _ends_below(self, wanted: Collection[Any], author: bytes, until: int) -> dict[Any, _Ends]:
        """What is listed first and last about each of `wanted`, on `author`'s line up to `until`."""
        places: dict[Listed, list[Any]] = {}
        for key in wanted:
            places.setdefault(self.numbers.about(key), []).append(key)
        found: dict[Any, _Ends] = {}
        for part in self._lines.line(author):
            match = f"a.node = t.x AND a.key = t.y AND a.branch = {part.branch} AND a.seq <= {min(until, part.seq)}"
            columns = "a.node, a.key, max(a.seq) AS newest, min(a.seq) AS oldest"
            for row in self._listed(columns, match, list(places), "GROUP BY a.node, a.key"):
                for key in places[Listed(row.node, row.key)]:
                    oldest = found[key].oldest if key in found else Mark(part.branch, row.oldest)
                    found[key] = _Ends(Mark(part.branch, row.newest), oldest)
        return found

    def last_words(self, author: bytes, wanted: Collection[Key]) -> dict[Key, Slot]:
        """The newest statement of `author` about each of `wanted`, whether it counts or not."""
        places = {self.numbers.about(key): key for key in wanted}
        ends = self._ends("a.node = t.x AND a.key = t.y", list(places))
        marks = {places[place]: its[author].newest for place, its in ends.items() if place in places and author in its}
        self.load(marks.values())
        return {key: self.slot_of(key, mark, self._op(mark)) for key, mark in marks.items() if key in self._op(mark).says}

    def slot_of(self, key: Any, mark: Mark, op: Op) -> Slot:
        """The statement about `key` that `op`, which lies at `mark`, makes."""
        value = op.says[key]
        retract = value is RETRACT
        return Slot(
            Dot(self._lines.branches[mark.branch].author, mark.seq), op.stamp, retract, None if retract else fields.typed(key, value)
        )

    # ---- what else is listed

    def hanging_on(self, nodes: Collection[Any], besides: Collection[Mark], until: Optional[Mapping[int, int]]) -> set[Any]:
        """Every attachment, constituent and replica about which something is said, with one of `nodes` at its other end.

        The ops at `besides` are left out, and so are those after `until` (branch → seq), if it is given.
        """
        wanted = set(nodes)
        places = [Listed(self.numbers.node(node, HANGING), 0) for node in wanted]
        marks = self.at(places) if until is None else self._at_until(places, until)
        facts = {key_of(key) for _, op in self.ops(marks.difference(besides)) for key in op.says if key[0] in _EDGES}
        return {fact for fact in facts if other_end(fact) in wanted}

    def listed_times(self, counts: Sequence[Listed]) -> set[int]:
        """Of nodes, each with a number, those under which as many ops are listed, under all kinds together."""
        match, end = "a.node BETWEEN t.x AND t.x + 3", "GROUP BY t.x, t.y HAVING count(*) = t.y"
        return {row.node for row in self._listed("t.x AS node", match, counts, end)}

    def unseen_in(self, parent: Did, seen: Mapping[int, int]) -> set[Any]:
        """Every attachment to `parent` of which something is said that is not in `seen` (branch → seq)."""
        place = Listed(self.numbers.node(parent, HANGING), 0)
        marks: set[Mark] = set()
        for branch in self._lines.branches:
            query = select(_ABOUT.seq).where(_ABOUT.node == place.node, _ABOUT.key == place.key, _ABOUT.branch == branch)
            marks |= {Mark(branch, seq) for seq in self._connection.execute(query.where(_ABOUT.seq > seen.get(branch, 0))).scalars()}
        facts = {key_of(key) for _, op in self.ops(marks) for key in op.says if key[0] == fields.ATTACHMENT}
        return {fact for fact in facts if fact.parent == parent}  # type: ignore[union-attr]

    def asking(self, names: Iterable[Name]) -> set[Did]:
        """Every DID of which an effective statement says that it bears one of `names`."""
        wanted = set(names)
        places = [Listed(self.numbers.node(name_node(name), HANGING), 0) for name in wanted]
        ops = self._ops_at(places)
        keys = {key_of(key) for op in ops for key, value in op.says.items() if value is not RETRACT and name_of(key, value) in wanted}
        slots = self.slots(keys)
        return {key.fact for key in keys if any(not s.retract and name_of(key, s.value) in wanted for s in slots.get(key, ()))}  # type: ignore[union-attr,misc]

    def history(self, key: Key) -> list[tuple[Said, Optional[Ruling]]]:
        """Every applied statement about `key`, oldest first, with its ruling; None for one on a branch that does not stand."""
        marks = [
            Mark(row.branch, row.seq) for row in self._listed("a.branch, a.seq", "a.node = t.x AND a.key = t.y", [self.numbers.about(key)])
        ]
        found = [Said(mark, self.slot_of(key, mark, op)) for mark, op in self.ops(marks) if key in op.says]
        return [
            (one, self._rulings.ruling(key, one.slot) if self._lines.stands(one.mark) else None)
            for one in sorted(found, key=lambda one: (*one.slot.order, one.mark.branch))
        ]

    def at(self, places: Collection[Listed]) -> set[Mark]:
        """The ops that are listed in `places`."""
        return {Mark(row.branch, row.seq) for row in self._listed("a.branch, a.seq", "a.node = t.x AND a.key = t.y", list(places))}

    def _at_until(self, places: Collection[Listed], until: Mapping[int, int]) -> set[Mark]:
        match = "a.node = t.x AND a.key = t.y AND a.branch = {} AND a.seq <= {}"
        found = (row for branch, seq in until.items() for row in self._listed("a.branch, a.seq", match.format(branch, seq), list(places)))
        return {Mark(row.branch, row.seq) for row in found}

    def _ops_at(self, places: Collection[Listed]) -> Iterator[Op]:
        return (op for _, op in self.ops(self.at(places)))

    def _listed(self, columns: str, match: str, places: Sequence[Listed], end: str = "") -> Iterator[Row[Any]]:
        """Rows of the index for `places`, a table of x and y: whole batches in one statement, and nothing but integers in its text.

        PostgreSQL, as long as it has not counted a table that was filled at once, would read all of it to join (10⁶ rows: 1 s for 400
        places, instead of 6 ms); a LATERAL that it cannot flatten makes it look each place up.
        """
        found = f"nsync_about a WHERE {match}"
        if self._connection.dialect.name == "postgresql":
            found = f"LATERAL (SELECT a.* FROM {found} OFFSET 0) a"
        for chunk in chunks(sorted(set(places))):
            values = ", ".join(f"({node}, {key})" for node, key in chunk)
            query = f"WITH t(x, y) AS (VALUES {values}) SELECT {columns} FROM t CROSS JOIN {found} {end}"
            yield from self._connection.exec_driver_sql(query)

    # ---- ops

    def remember(self, mark: Mark, op: Op) -> None:
        """Keep an op that was decoded already."""
        self._make_room(1)
        self._keep(mark, op)

    def _keep(self, mark: Mark, op: Op) -> None:
        if self._bytes + op.size > OPS_BYTES_MAX:
            self.forget_ops()
        self._bytes += op.size
        self._ops[mark] = op

    def _make_room(self, count: int) -> None:
        if len(self._ops) + count > OPS_KEPT:
            self.forget_ops()

    def forget_ops(self) -> None:
        """Read ops anew: some are gone."""
        self._ops.clear()
        self._bytes = 0

    def _op(self, mark: Mark) -> Op:
        if mark not in self._ops:
            self.load([mark])
        return self._ops[mark]

    def load(self, marks: Collection[Mark]) -> None:
        """Remember the ops at `marks`. Of more bytes than are remembered the last ones are; the others are read when they are asked for."""
        self._make_room(sum(mark not in self._ops for mark in marks))
        for chunk in chunks(sorted(set(marks))):
            self._load(chunk)

    def _load(self, marks: Sequence[Mark]) -> dict[Mark, Op]:
        found = {mark: self._ops[mark] for mark in marks if mark in self._ops}
        for mark, stamp, raw in self.fetch([mark for mark in marks if mark not in found]):
            found[mark] = read_op(stamp, stored_op(raw), len(raw))
            self._keep(mark, found[mark])
        return found

    def ops(self, marks: Iterable[Mark]) -> Iterator[tuple[Mark, Op]]:
        """The ops at `marks`, decoded, however many they are; those that compaction took are left out."""
        for chunk in chunks(sorted(set(marks))):
            self._make_room(len(chunk))
            found = self._load(chunk)
            yield from [(mark, found[mark]) for mark in chunk if mark in found]

    def fetch(self, marks: Collection[Mark]) -> Iterator[tuple[Mark, Stamp, bytes]]:
        """The ops at `marks` as they are stored, without those that compaction took."""
        by_branch: dict[int, list[int]] = {}
        for mark in marks:
            by_branch.setdefault(mark.branch, []).append(mark.seq)
        for branch, seqs in by_branch.items():
            for chunk in chunks(seqs):
                at = _OP.branch == branch, is_among(self._connection, _OP.seq, chunk)
                query = select(_OP.seq, _OP.stamp_ms, _OP.stamp_logical, _OP.raw).where(*at)
                for seq, ms, logical, raw in self._connection.execute(query):
                    if raw[:1] != GONE:
                        yield Mark(branch, seq), Stamp(ms, logical), raw


_EDGES = (fields.ATTACHMENT, fields.CONSTITUENT, fields.REPLICA)


def read_op(stamp: Stamp, wire: Sequence[Any], size: int) -> Op:
    """An op as it is asked about, which is stored in `size` bytes; one of another kind says nothing."""
    if wire[0] != STATEMENTS_KIND:
        return Op(stamp, {}, size)
    return Op(stamp, {said[0]: said[1] if len(said) == 2 else RETRACT for said in wire[1:]}, size)
