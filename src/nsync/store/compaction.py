"""Compaction in SQL: below the newest floor, what is superseded gives its place to its hash (R4.7, log.compaction).

Segments keep their headers and signatures, so they are forwarded and verified as before. The work grows with what came below the
floor since the last time: each op there may supersede older ones of its author.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from nsync.log.forks import Mark
from nsync.log.segment import gone, leaf_of
from nsync.namespace.keys import Did, key_of
from nsync.store import kept, schema
from nsync.store.database import chunks
from nsync.store.lines import SqlLines
from nsync.store.state import SqlState
from nsync.store.statements import Op

_ABOUT, _OP, _GUEST = schema.about.c, schema.op.c, schema.guest.c

STRETCH_OPS = 4096
"""Ops looked at together."""


def compact(connection: Connection, lines: SqlLines, state: SqlState) -> int:
    """Collect below the newest floor what it lets go; returns how many ops went. In one transaction of the caller's."""
    taken = 0
    for author, until in (lines.floors()[-1] if lines.floors() else {}).items():
        name = f"compacted {author.hex()[:22]}"
        done = int(kept.read(connection, name) or b"0")
        if done < until:
            stretch = _Stretch(connection, lines, state, author, until)
            taken += sum(stretch.collect(low, min(low + STRETCH_OPS, until)) for low in range(done, until, STRETCH_OPS))
            kept.write(connection, name, str(until).encode())
    return taken


class _Stretch:
    """One author's log up to the floor."""

    def __init__(self, connection: Connection, lines: SqlLines, state: SqlState, author: bytes, until: int) -> None:
        self.connection, self.lines, self.state, self.author, self.until = connection, lines, state, author, until

    def collect(self, after: int, until: int) -> int:
        """Take the ops that what lies in this stretch supersedes."""
        keys = {key for _, op in self._ops(after, until) for key in op.says}
        older = {mark for mark in self._about(keys) if mark.seq <= self.until}
        doomed = [mark for mark, op in self.state.statements.ops(older) if op.says and all(self._superseded(key, mark) for key in op.says)]
        for chunk in chunks(doomed):
            self._take(chunk)
        return len(doomed)

    def _superseded(self, key: Any, mark: Mark) -> bool:
        """Whether the author said something later about `key` that counts and lies below the floor; a first claim never is."""
        key = key_of(key)
        newest = self.state.statements.newest_below(key, self.author, self.until)
        if newest is None or newest.dot.seq <= mark.seq:
            return False
        if isinstance(key, Did):
            claims = self.state.about([key])[key].claims
            return all((claim.dot.author, claim.dot.seq) != (self.author, mark.seq) for claim in claims)
        return True

    def _ops(self, after: int, until: int) -> Iterator[tuple[Mark, Op]]:
        marks = []
        for part in self.lines.line(self.author):
            query = select(_OP.seq).where(_OP.branch == part.branch, _OP.seq > after, _OP.seq <= min(until, part.seq))
            marks += [Mark(part.branch, seq) for seq in self.connection.execute(query).scalars()]
        return self.state.statements.ops(marks)

    def _about(self, keys: Collection[Any]) -> set[Mark]:
        branches = {part.branch for part in self.lines.line(self.author)}
        numbers = self.state.statements.numbers
        return {mark for mark in self.state.statements.at({numbers.about(key) for key in keys}) if mark.branch in branches}

    def _take(self, marks: Collection[Mark]) -> None:
        numbers = self.state.statements.numbers
        listed, raws = [], []
        for mark, op in self.state.statements.ops(marks):
            for key, value in op.says.items():
                places = numbers.of_statement(key, value)
                listed += [{"n": place.node, "k": place.key, "b": mark.branch, "s": mark.seq} for place in places]
        for mark, _, raw in self.state.statements.fetch(marks):
            raws.append({"b": mark.branch, "s": mark.seq, "now": gone(raw)})
            assert leaf_of(gone(raw)) == leaf_of(raw)
        at = (_ABOUT.node == bindparam("n"), _ABOUT.key == bindparam("k"), _ABOUT.branch == bindparam("b"), _ABOUT.seq == bindparam("s"))
        self.connection.execute(delete(schema.about).where(*at), listed)
        self.connection.execute(delete(schema.guest).where(_GUEST.branch == bindparam("b"), _GUEST.seq == bindparam("s")), raws)
        dot = (_OP.branch == bindparam("b"), _OP.seq == bindparam("s"))
        self.connection.execute(update(schema.op).where(*dot).values(raw=bindparam("now")), raws)
        self.state.statements.forget_ops()
