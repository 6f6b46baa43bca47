"""Compaction in SQL: below the newest floor, what is superseded gives its place to its hash (R4.7, log.compaction).

Segments keep their headers and signatures, so they are forwarded and verified as before. The work grows with what came below the
floor since the last time: each op there may supersede older ones of its author. Up to where it was done, what is present is live.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, delete, update

from nsync.log.compaction import BLOCK_OPS
from nsync.log.forks import Mark
from nsync.log.segment import gone, leaf_of
from nsync.store import kept, schema
from nsync.store.database import chunks, is_among
from nsync.store.lines import SqlLines
from nsync.store.state import SqlState
from nsync.store.statements import Op

_ABOUT, _OP, _GUEST, _BLOCK = schema.about.c, schema.op.c, schema.guest.c, schema.block.c

STRETCH_OPS = 4096
"""Ops looked at together."""


def compacted(connection: Connection, author: bytes) -> int:
    """Up to which seq `author`'s log is compacted: what is present there is live."""
    return int(kept.read(connection, _name(author)) or b"0")


def compact(connection: Connection, lines: SqlLines, state: SqlState, ms_max: float = math.inf) -> int:
    """Collect below the newest floor what it lets go; returns how many ops went. In one transaction of the caller's.

    After `ms_max` it ends with the stretch at hand: each is done whole, and the next call goes on from there.
    """
    taken, began = 0, time.monotonic()
    for author, until in (lines.floors()[-1] if lines.floors() else {}).items():
        stretch = Stretch(connection, lines, state, author, until)
        for low, high in stretches(compacted(connection, author), until):
            taken += stretch.collect(stretch.spoken_of(low, high))
            kept.write(connection, _name(author), str(high).encode())
            if (time.monotonic() - began) * 1000 >= ms_max:
                return taken
    return taken


def is_compact(connection: Connection, lines: SqlLines) -> bool:
    """Whether nothing is left to collect below the newest floor."""
    floor = lines.floors()[-1] if lines.floors() else {}
    return all(compacted(connection, author) >= until for author, until in floor.items())


def compact_anew(connection: Connection) -> None:
    """Look at all logs again: by an amendment, statements may count that did not."""
    connection.execute(delete(schema.kept).where(schema.kept.c.name.startswith(_name(b""))))


def stretches(after: int, until: int) -> Iterator[tuple[int, int]]:
    """What lies after `after`, up to `until`, in parts."""
    for low in range(after, until, STRETCH_OPS):
        yield low, min(low + STRETCH_OPS, until)


def marks_of(lines: SqlLines, author: bytes, after: int, until: int) -> list[Mark]:
    """The places on `author`'s line after `after`, up to `until`."""
    found: list[Mark] = []
    for part in lines.line(author):
        found += [Mark(part.branch, seq) for seq in range(after + 1, min(until, part.seq) + 1)]
        after = max(after, part.seq)
    return found


class Stretch:
    """One author's log up to a floor."""

    def __init__(self, connection: Connection, lines: SqlLines, state: SqlState, author: bytes, until: int) -> None:
        self.connection, self.lines, self.state, self.author, self.until = connection, lines, state, author, until

    def spoken_of(self, after: int, until: int) -> set[Any]:
        """The keys that what lies after `after`, up to `until`, speaks of."""
        marks = marks_of(self.lines, self.author, after, until)
        return {key for _, op in self.state.statements.ops(marks) for key in op.says}

    def superseded(self, keys: Collection[Any], until: int) -> Iterator[list[Mark]]:
        """The ops up to `until` that speak of `keys` and are superseded."""
        ends = {part.branch: min(part.seq, until) for part in self.lines.line(self.author)}
        statements = self.state.statements
        marks = statements.at({statements.numbers.about(key) for key in keys})
        for chunk in chunks(sorted(mark for mark in marks if mark.seq <= ends.get(mark.branch, 0)), STRETCH_OPS):
            yield sorted(statements.superseded(dict(statements.ops(chunk)), self.author, self.until))

    def collect(self, keys: Collection[Any]) -> int:
        """Take the superseded ops that speak of `keys`."""
        doomed = [mark for marks in self.superseded(keys, self.until) for mark in marks]
        for chunk in chunks(doomed):
            self._take(chunk)
        return len(doomed)

    def _take(self, marks: Collection[Mark]) -> None:
        numbers = self.state.statements.numbers
        listed, raws = [], []
        ops: dict[Mark, Op] = dict(self.state.statements.ops(marks))
        for mark, op in ops.items():
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
        forget_blocks(self.connection, self.author, (mark.seq for mark in marks))
        self.state.statements.forget_ops()


def forget_blocks(connection: Connection, author: bytes, seqs: Iterable[int]) -> None:
    """What is live among `seqs` has changed: the digests of their blocks are not kept any more."""
    for chunk in chunks(sorted({(seq - 1) // BLOCK_OPS for seq in seqs})):
        connection.execute(delete(schema.block).where(_BLOCK.author == author, is_among(connection, _BLOCK.number, chunk)))


def _name(author: bytes) -> str:
    return f"compacted {author.hex()[:22]}"
