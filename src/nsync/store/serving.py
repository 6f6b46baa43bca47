"""What peers ask of the log: heads, which of theirs are known here, and the segments that they lack (DESIGN 8).

A head is the end of a branch, so an author who forked has several. Whoever asks for segments says what they have as places
in each log, the newest first; one that lies on a branch here is where their copy and this one are still the same. `locator` gives
places ever further apart, so that a fork far back is found within one question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

from sqlalchemy import Connection, select

from nsync.authority.charter import Place
from nsync.log.forks import Line, Mark, line_to
from nsync.log.stored import Head, StoredSegment
from nsync.namespace import codec
from nsync.store import schema
from nsync.store.lines import BranchRow, SqlLines

_SEGMENT, _OP = schema.segment.c, schema.op.c

LOOK_AHEAD = 64
"""Segments of one branch looked at for one answer: the next question gets the next ones."""


def heads(lines: SqlLines) -> list[Head]:
    """The end of each branch of each log, applied or waiting."""
    found = [Head(branch.author, branch.last, branch.hash) for branch in lines.branches.values()]
    return sorted(found)


def unknown(connection: Connection, lines: SqlLines, theirs: Collection[Head]) -> list[Head]:
    """Those of `theirs` whose segments are not stored here."""
    return [head for head in theirs if _find(connection, lines.of(head.author), Place(head.seq, head.hash)) is None]


def locator(connection: Connection, lines: SqlLines, author: bytes) -> list[Place]:
    """Places of `author`'s log here, from the end of each branch back in steps that double."""
    found: list[Place] = []
    for branch in lines.of(author):
        found.append(Place(branch.last, branch.hash))
        step = 1
        while branch.last - step >= branch.first:
            place = _segment_before(connection, branch.id, branch.last - step)
            if place is not None and place not in found:
                found.append(place)
            step *= 4
    return sorted(found, reverse=True)


def places_at(connection: Connection, lines: SqlLines, author: bytes, seq: int) -> list[Place]:
    """The ends of the segments at or before `seq` on `author`'s branches."""
    found = [_segment_before(connection, branch.id, min(seq, branch.last)) for branch in lines.of(author) if branch.first <= seq]
    return [place for place in found if place is not None and place.seq <= seq]


def segments_after(connection: Connection, lines: SqlLines, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
    """The next segments of the authors in `have` beyond the places given; at least one if there is any, then up to `bytes_max`."""
    wanted = {part for author, places in have.items() for part in _parts(connection, lines, author, places)}
    rows = []
    for part in wanted:
        query = select(_SEGMENT.arrival, _SEGMENT.branch, _SEGMENT.first, _SEGMENT.last, _SEGMENT.size, _SEGMENT.header, _SEGMENT.signature)
        query = query.where(_SEGMENT.branch == part.branch, _SEGMENT.first > part.after, _SEGMENT.last <= part.until)
        rows += list(connection.execute(query.order_by(_SEGMENT.first).limit(LOOK_AHEAD)))
    found: list[StoredSegment] = []
    size = 0
    for row in sorted(rows, key=lambda row: int(row.arrival)):
        if found and size + row.size > bytes_max:
            break
        size += row.size
        ops = ops_of(connection, row.branch, row.first, row.last)
        frame = codec.pack((row.header, row.signature, ops))
        found.append(StoredSegment(lines.branches[row.branch].author, row.first, row.last, frame))
    return found


def ops_of(connection: Connection, branch: int, first: int, last: int) -> tuple[bytes, ...]:
    """The ops of a stretch of a branch as they are stored."""
    query = select(_OP.raw).where(_OP.branch == branch, _OP.seq >= first, _OP.seq <= last)
    return tuple(connection.execute(query.order_by(_OP.seq)).scalars())


class _Part(NamedTuple):
    branch: int
    after: int
    until: int


def _parts(connection: Connection, lines: SqlLines, author: bytes, places: Sequence[Place]) -> Iterator[_Part]:
    """The stretches of `author`'s branches that lie beyond the newest of `places` on each."""
    branches = lines.of(author)
    known = [mark for place in places if (mark := _find(connection, branches, place)) is not None]
    if places and not known:
        return  # they have another branch, and did not say far enough back what they have: they ask again, or we ask them
    for branch in branches:
        line = line_to(lines.branches_tree, Mark(branch.id, branch.last))
        yield from _beyond(line, known, lines)


def _beyond(line: Line, known: Sequence[Mark], lines: SqlLines) -> Iterator[_Part]:
    base = max((mark.seq for mark in known if any(mark.branch == part.branch and mark.seq <= part.seq for part in line)), default=0)
    for part in line:
        after = max(base, lines.branches[part.branch].first - 1)
        if after < part.seq:
            yield _Part(part.branch, after, part.seq)


def _find(connection: Connection, branches: Sequence[BranchRow], place: Place) -> Optional[Mark]:
    for branch in branches:
        if (branch.last, branch.hash) == place or (
            branch.first <= place.seq < branch.last and _segment_before(connection, branch.id, place.seq) == place
        ):
            return Mark(branch.id, place.seq)
    return None


def _segment_before(connection: Connection, branch: int, seq: int) -> Optional[Place]:
    """The end of the last segment of `branch` that begins at or before `seq`."""
    query = select(_SEGMENT.last, _SEGMENT.hash).where(_SEGMENT.branch == branch, _SEGMENT.first <= seq)
    row = connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
    return Place(*row) if row is not None else None
