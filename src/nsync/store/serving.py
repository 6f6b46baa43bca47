"""What peers ask of the log: heads, which of theirs are known here, and the segments that they lack (DESIGN 8).

A head is the end of a branch, so an author who forked has several. Whoever asks for segments says what they have as places
in each log, the newest first; one that lies on a branch here is where their copy and this one are still the same. `locator` gives
places ever further apart, so that a fork far back is found within one question; it ends with the log's beginning, so that two who
share nothing find each other too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Optional

from sqlalchemy import Connection, Row, select

from nsync.authority.charter import Place
from nsync.log.forks import Line, Mark, line_to
from nsync.log.segment import CHANGESET_SEGMENTS_MAX, decode_header
from nsync.log.stored import BEGINNING, Head, StoredSegment
from nsync.namespace import codec
from nsync.store import schema
from nsync.store.lines import BranchRow, SqlLines

_SEGMENT, _OP = schema.segment.c, schema.op.c

LOOK_AHEAD = 64
"""Segments of one line looked at for one answer: the next question gets the next ones."""


def heads(lines: SqlLines) -> list[Head]:
    """The end of each branch of each log, applied or waiting."""
    found = [Head(branch.author, branch.last, branch.hash) for branch in lines.branches.values()]
    return sorted(found)


def unknown(connection: Connection, lines: SqlLines, theirs: Collection[Head]) -> list[Head]:
    """Those of `theirs` whose segments are not stored here."""
    return [head for head in theirs if not any(_marks(connection, lines.of(head.author), Place(head.seq, head.hash)))]


def locator(connection: Connection, lines: SqlLines, author: bytes) -> list[Place]:
    """Places of `author`'s log here, from the end of each branch back in steps that double, and its beginning; [] for no log."""
    found: set[Place] = set()
    for branch in lines.of(author):
        found |= {BEGINNING, Place(branch.last, branch.hash)}
        step = 1
        while branch.last - step >= branch.first:
            place = segment_before(connection, branch.id, branch.last - step)
            assert place is not None, "a branch has no holes"
            found.add(place)
            step *= 2
    return sorted(found, reverse=True)


def segments_after(connection: Connection, lines: SqlLines, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
    """The next segments of the authors in `have` beyond the places given; at least one if there is any, then up to `bytes_max`."""
    rows = [row for author, places in have.items() for row in _rows(connection, lines, author, places)]
    rows.sort(key=lambda row: row.arrival, reverse=True)
    once = {row.hash: row for row in rows}  # of what several branches hold, the one that came first
    found: list[StoredSegment] = []
    size = 0
    for row in sorted(once.values(), key=lambda row: row.arrival):
        if found and size + row.size > bytes_max:
            break
        size += row.size
        ops = ops_of(connection, row.branch, row.first, row.last)
        frame = codec.pack((row.header, row.signature, ops))
        author = lines.branches[row.branch].author
        found.append(StoredSegment(author, row.first, row.last, frame, decode_header(row.header).prev, row.hash))
    return found


def ops_of(connection: Connection, branch: int, first: int, last: int) -> tuple[bytes, ...]:
    """The ops of a stretch of a branch as they are stored."""
    query = select(_OP.raw).where(_OP.branch == branch, _OP.seq >= first, _OP.seq <= last)
    return tuple(connection.execute(query.order_by(_OP.seq)).scalars())


def _rows(connection: Connection, lines: SqlLines, author: bytes, places: Sequence[Place]) -> Iterator[Row[Any]]:
    """The next rows of each line of `author`'s log, none before those that it continues."""
    branches, tree = lines.of(author), lines.branches_tree
    marks: dict[Place, list[Mark]] = {}
    for branch in branches:
        line = line_to(tree, Mark(branch.id, branch.last))
        base = 0 if not places else None
        for place in sorted(places, reverse=True):
            if base is not None and place.seq <= base:
                break
            if place not in marks:
                marks[place] = list(_marks(connection, branches, place))
            shared = [_agreed(connection, line, line_to(tree, mark)) for mark in marks[place]] + [0] * (place == BEGINNING)
            base = max([*shared, base] if base is not None else shared, default=None)
        if base is not None:  # else they have something else, and did not say far enough back what
            yield from _line_after(connection, line, base, LOOK_AHEAD)


def _line_after(connection: Connection, line: Line, base: int, rows_max: int) -> Iterator[Row[Any]]:
    """The next rows of `line`."""
    for part in line:
        if base < part.seq and rows_max:
            query = select(schema.segment).where(_SEGMENT.branch == part.branch, _SEGMENT.first > base, _SEGMENT.last <= part.seq)
            rows = connection.execute(query.order_by(_SEGMENT.first).limit(rows_max)).all()
            rows_max -= len(rows)
            yield from rows


def _agreed(connection: Connection, line: Line, other: Line) -> int:
    """How far two lines are one, with what they share of an unfinished changeset: it is stored on each (store.intake)."""
    seq = max((min(part.seq, there.seq) for part in line for there in other if part.branch == there.branch), default=0)
    if seq < min(line[-1].seq, other[-1].seq):
        ends = (_line_after(connection, way, seq, CHANGESET_SEGMENTS_MAX) for way in (line, other))
        for mine, theirs in zip(*ends):
            if mine.hash != theirs.hash:
                break
            seq = mine.last
    return seq


def _marks(connection: Connection, branches: Sequence[BranchRow], place: Place) -> Iterator[Mark]:
    """The branches that hold `place`: several where a fork copied an unfinished changeset."""
    for branch in branches:
        if (branch.last, branch.hash) == place or (
            branch.first <= place.seq < branch.last and segment_before(connection, branch.id, place.seq) == place
        ):
            yield Mark(branch.id, place.seq)


def segment_before(connection: Connection, branch: int, seq: int) -> Optional[Place]:
    """The end of the last segment of `branch` that begins at or before `seq`."""
    query = select(_SEGMENT.last, _SEGMENT.hash).where(_SEGMENT.branch == branch, _SEGMENT.first <= seq)
    row = connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
    return Place(*row) if row is not None else None
