"""What is live below a floor, or below heads that are proposed for one, in SQL: its digest, block by block (R3.8, log.compaction).

Up to where a log is compacted, what is present is live, but for what the ops since then supersede; beyond, each block is looked at by
itself. So the work grows with what came since the last floor, and memory with nothing. The digests of compacted blocks are kept
(`nsync_block`) until something in them changes.

An op whose place holds only its hash is not live here. Where it should be, the digest is not the one that the floor's signers signed,
and the op is fetched (store.repair).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Optional

from sqlalchemy import Connection, func, select

from nsync.authority.charter import AuthorId, Charter
from nsync.crdt import Dot
from nsync.errors import NsyncError
from nsync.log.compaction import BLOCK_OPS, block_digest, live_digest
from nsync.log.floor import Floor
from nsync.log.segment import GONE, NO_HASH, Dep, leaf_of
from nsync.namespace import codec
from nsync.store import kept, schema
from nsync.store.bulk import bulk_insert
from nsync.store.compaction import Stretch, compact, compacted, is_compact, marks_of, stretches
from nsync.store.lines import SqlLines
from nsync.store.state import SqlState

KEPT = "below the floor"
"""Under which it is kept what was found below which floor: (number, text), the text empty where all is as it should be."""

_OP, _SEGMENT, _BLOCK = schema.op.c, schema.segment.c, schema.block.c


def live_of(connection: Connection, lines: SqlLines, state: SqlState, heads: Mapping[bytes, int]) -> bytes:
    """The digest of all that is live below `heads`, once they are a floor: what a vote for them signs.

    `heads` (author → seq) are ends of applied changesets on the lines that stand, and hold the newest floor. Whether compaction ran
    changes nothing; nothing is written. Raises NsyncError where it cannot be told any more: a log is compacted beyond its head.
    """
    if not lines.floors() or dict(lines.floors()[-1]) != dict(heads):
        lines = _AsIf(connection, lines.charter, _floor(connection, lines, heads))
        state = SqlState(connection, lines)
    return live_digest({author: block_digests(connection, lines, state, author, until) for author, until in heads.items()})


def block_digests(connection: Connection, lines: SqlLines, state: SqlState, author: bytes, until: int) -> list[bytes]:
    """The digests of the blocks of `author`'s log up to `until`, where it meets the newest floor of `lines`."""
    return _Log(connection, lines, state, author, until).digests()


def collect(connection: Connection, lines: SqlLines, state: SqlState, ms_max: float) -> int:
    """Compact for about `ms_max`, and keep digests in what is left of it once everything is compacted; returns how many ops went.

    In a transaction that writes. The next call goes on from there, until `is_kept`.
    """
    began = time.monotonic()
    taken = compact(connection, lines, state, ms_max)
    if is_compact(connection, lines):
        keep(connection, lines, ms_max - (time.monotonic() - began) * 1000)
    return taken


def keep(connection: Connection, lines: SqlLines, ms_max: float) -> None:
    """Keep the digests of whole compacted blocks that are not kept yet; after `ms_max` it ends with the block at hand."""
    began = time.monotonic()
    for author in lines.floors()[-1] if lines.floors() else ():
        for number in sorted(set(range(_whole(connection, author))).difference(_kept(connection, author))):
            digest = block_digest(present(connection, lines, author, *_span(number)))
            bulk_insert(connection, schema.block.name, ("author", "number", "digest"), [(author, number, digest)])
            if (time.monotonic() - began) * 1000 >= ms_max:
                return


def is_kept(connection: Connection, lines: SqlLines) -> bool:
    """Whether the digests of all whole compacted blocks are kept."""
    for author in lines.floors()[-1] if lines.floors() else ():
        whole = _whole(connection, author)
        query = select(func.count()).where(_BLOCK.author == author, _BLOCK.number < whole)
        if connection.execute(query).scalar_one() < whole:
            return False
    return True


def present(connection: Connection, lines: SqlLines, author: bytes, after: int, until: int) -> Iterator[tuple[int, bytes]]:
    """Of the ops of `author`'s line after `after`, up to `until`, those that are here: seq and hash."""
    for part in lines.line(author):
        query = select(_OP.seq, _OP.raw).where(_OP.branch == part.branch, _OP.seq > after, _OP.seq <= min(until, part.seq))
        for seq, raw in connection.execute(query.order_by(_OP.seq)):
            if raw[:1] != GONE:
                yield seq, leaf_of(raw)


def noted(connection: Connection) -> Optional[tuple[int, str]]:
    """What was found below which floor, when that was looked at last: nothing, if all was as its signers signed."""
    raw = kept.read(connection, KEPT)
    return None if raw is None else codec.load(raw)


def is_whole(connection: Connection, lines: SqlLines, state: SqlState) -> bool:
    """Whether what is live here below the newest floor is what its signers signed, or was when that was looked at last."""
    floor = lines.usable_floors[-1] if lines.usable_floors else None
    if floor is None or noted(connection) == (floor.number, ""):
        return True
    return live_of(connection, lines, state, {head.author: head.seq for head in floor.heads}) == floor.live


class _AsIf(SqlLines):
    """The logs as if `floor` had been voted for."""

    def __init__(self, connection: Connection, charter: Charter, floor: Floor) -> None:
        super().__init__(connection, charter)
        self._proposed = floor

    @cached_property
    def usable_floors(self) -> list[Floor]:
        return [*super().usable_floors, self._proposed]


class _Log:
    """One author's log up to where it meets a floor."""

    def __init__(self, connection: Connection, lines: SqlLines, state: SqlState, author: bytes, until: int) -> None:
        self.connection, self.lines, self.state, self.author, self.until = connection, lines, state, author, until
        self.done = compacted(connection, author)
        if self.done > until:
            raise NsyncError(
                f"what was live below {until} of {author.hex()[:12]} cannot be told any more: the log is compacted up to {self.done}"
            )

    def digests(self) -> list[bytes]:
        """Of each block."""
        dead, kept = self._dead_below(), _kept(self.connection, self.author)
        found = []
        for number in range(-(-self.until // BLOCK_OPS)):
            after, until = _span(number)
            if until <= self.done and number in kept and number not in dead:
                found.append(kept[number])
            else:
                found.append(self._digest(after, min(until, self.until), dead.get(number, set())))
        return found

    def _dead_below(self) -> dict[int, set[int]]:
        """What the ops that are not compacted supersede among those that are: the number of a block → seqs."""
        stretch = Stretch(self.connection, self.lines, self.state, self.author, self.until)
        found: dict[int, set[int]] = {}
        for low, high in stretches(self.done, self.until) if self.done else ():
            for marks in stretch.superseded(stretch.spoken_of(low, high), self.done):
                for mark in marks:
                    found.setdefault((mark.seq - 1) // BLOCK_OPS, set()).add(mark.seq)
        return found

    def _digest(self, after: int, until: int, dead: set[int]) -> bytes:
        dead = dead | self._dead_beyond(max(after, self.done), until)
        here = present(self.connection, self.lines, self.author, after, until)
        return block_digest((seq, leaf) for seq, leaf in here if seq not in dead)

    def _dead_beyond(self, after: int, until: int) -> set[int]:
        """What is superseded of a stretch that is not compacted."""
        marks = marks_of(self.lines, self.author, after, until)
        ops = dict(self.state.statements.ops(marks))
        return {mark.seq for mark in self.state.statements.superseded(ops, self.author, self.until)}


def _floor(connection: Connection, lines: SqlLines, heads: Mapping[bytes, int]) -> Floor:
    """`heads` as a floor; its number and digest say nothing."""
    found = []
    for author, seq in sorted(heads.items()):
        mark = lines.on_line(Dot(author, seq))
        assert mark is not None and seq >= (lines.floors()[-1].get(author, 0) if lines.floors() else 0), "it is above the newest floor"
        query = select(_SEGMENT.hash).where(_SEGMENT.branch == mark.branch, _SEGMENT.last == seq)
        found.append(Dep(AuthorId(author), seq, connection.execute(query).scalar() or NO_HASH))
    return Floor(len(lines.floors()) + 1, lines.charter.version, tuple(found), bytes(16))


def _kept(connection: Connection, author: bytes) -> dict[int, bytes]:
    query = select(_BLOCK.number, _BLOCK.digest).where(_BLOCK.author == author)
    return {number: bytes(digest) for number, digest in connection.execute(query)}


def _whole(connection: Connection, author: bytes) -> int:
    """How many blocks of `author`'s log are compacted whole."""
    return compacted(connection, author) // BLOCK_OPS


def _span(number: int) -> tuple[int, int]:
    """After which seq a block begins, and with which it ends."""
    return number * BLOCK_OPS, (number + 1) * BLOCK_OPS
