"""Taking in segments: what is stored is durable, and nothing is applied yet (R4.2-R4.4).

`decode_batch` does the dear part without the database. `store` then finds for each segment the branch that it continues; one that
continues a place where another segment follows already begins a branch of its own, and proves its author's fork. A branch begins
after the end of a changeset: what a fork shares of an unfinished one is copied, so that a changeset lies on one branch whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional

from sqlalchemy import Connection, func, insert, select, update

from nsync.authority.charter import Verify
from nsync.authority.effective import Authority
from nsync.clock import Stamp
from nsync.errors import RejectedSegment
from nsync.failpoints import failpoint
from nsync.log.admission import admit, check_segment
from nsync.log.forks import BRANCHES_MAX, prove
from nsync.log.segment import EMPTY, GONE, NO_HASH, Segment, Tip, decode_frame, decode_header
from nsync.log.stored import FULL, GAP, Receipt
from nsync.namespace import codec
from nsync.store import schema
from nsync.store.bulk import bulk_insert
from nsync.store.collector import collector_paused
from nsync.store.database import chunks, is_among
from nsync.store.lines import BranchRow, SqlLines

WAITING_SEGMENTS_MAX = 1024
"""Segments of one branch that are stored and not applied yet: four changesets of the largest size."""

_SEGMENT, _BRANCH = schema.segment.c, schema.branch.c
_SEGMENT_COLUMNS = ("branch", "first", "last", "hash", "commits", "size", "header", "signature")
_OP_COLUMNS = ("branch", "seq", "stamp_ms", "stamp_logical", "raw")


@collector_paused()
def decode_batch(frames: Sequence[bytes], authority: Authority, verify: Verify) -> tuple[list[Segment], list[str]]:
    """The segments of `frames` with everything checked that needs no database, and a text for each that fails."""
    segments, rejected = [], []
    for frame in frames:
        try:
            segment = decode_frame(frame)
            check_segment(segment, authority.charter, verify)
            segments.append(segment)
        except RejectedSegment as error:
            rejected.append(str(error))
    return segments, rejected


class _Branch:
    """A branch while segments are added to it."""

    def __init__(self, id: int, author: bytes, parent: Optional[int], first: int, tip: Tip) -> None:
        self.id, self.author, self.parent, self.first, self.tip = id, author, parent, first, tip
        self.applied = first - 1
        self.refused: Optional[str] = None
        self.new = self.moved = True

    @classmethod
    def of(cls, row: BranchRow) -> _Branch:
        """One that is stored."""
        tip = Tip(row.last, row.hash, Stamp(row.stamp_ms, row.stamp_logical), row.open_segments)
        found = cls(row.id, row.author, row.parent, row.first, tip)
        found.applied, found.refused, found.new, found.moved = row.applied, row.refused, False, False
        return found


class _Place(NamedTuple):
    """A stored segment that another one may continue."""

    branch: int
    first: int
    last: int


class Intake:
    """Stores one batch of segments."""

    def __init__(self, connection: Connection, lines: SqlLines) -> None:
        self._connection = connection
        self._lines = lines
        self._branches: dict[bytes, list[_Branch]] = {}
        self._segments: list[tuple[Any, ...]] = []
        self._ops: list[tuple[Any, ...]] = []
        self._new: set[bytes] = set()
        self._next_id = max(lines.branches, default=0) + 1

    @collector_paused()
    def store(self, segments: Sequence[Segment]) -> Receipt:
        """Store those of `segments`, checked by `decode_batch`, that continue their logs. Known ones count for nothing."""
        known = self._known(segments)
        refused: set[bytes] = set()
        rejected = []
        for segment in segments:
            author = segment.header.author
            if segment.hash in known or segment.hash in self._new or author in refused:
                continue
            try:
                self._take(segment)
            except RejectedSegment as error:
                refused.add(author)
                instance = self._lines.charter.by_author(author)
                rejected.append(f"{instance.name if instance is not None else author.hex()[:12]}: {error}")
        self.flush()
        return Receipt(len(self._new), tuple(rejected))

    def add(self, segment: Segment) -> None:
        """Store one segment of this instance's own log. Raises RejectedSegment as for a stranger's."""
        self._take(segment)

    def flush(self) -> None:
        """Write what was taken."""
        self._write_rows()
        failpoint("intake-ops-written")
        for branches in self._branches.values():
            for branch in branches:
                self._write(branch)
        self._lines.forget()

    # ---- one segment

    def _take(self, segment: Segment) -> None:
        branch = self._continued(segment)
        waiting = sum(1 for row in self._segments if row[0] == branch.id) + self._waiting(branch)
        if waiting >= WAITING_SEGMENTS_MAX:
            refused = self._refused(branch)
            if refused is not None:
                raise RejectedSegment(f"{segment} continues what is refused here: {refused}")
            raise RejectedSegment(f"{segment}{FULL}{waiting} segments of its author wait here already; it is taken once they are applied")
        self._check_gone(segment)
        branch.tip = admit(segment, branch.tip)
        branch.moved = True
        self._new.add(segment.hash)
        self._append(branch.id, segment)

    def _append(self, branch: int, segment: Segment) -> None:
        header = segment.header
        size = len(segment.header_bytes) + sum(map(len, segment.ops)) + 4 * len(segment.ops)
        self._segments.append(
            (branch, header.first, header.last, segment.hash, header.commit, size, segment.header_bytes, segment.signature)
        )
        self._ops += [(branch, seq, *header.stamp, raw) for seq, raw in enumerate(segment.ops, header.first)]

    def _continued(self, segment: Segment) -> _Branch:
        """The branch that `segment` continues; a new one for a first segment or a fork. Raises RejectedSegment for a gap."""
        header = segment.header
        branches = self._of(header.author)
        for branch in branches:
            if branch.tip.hash == header.prev:
                return branch
        if header.prev == NO_HASH and header.first == 1 and not branches:
            admit(segment, EMPTY)  # what is refused begins nothing
            return self._begin(header.author, None, 1, EMPTY)
        if header.prev == NO_HASH and header.first == 1:
            return self._fork(segment, branches, None)
        place = self._find(branches, header.first - 1, header.prev)
        if place is None:
            ends = max((branch.tip.seq for branch in branches), default=0)
            raise RejectedSegment(f"{segment}{GAP}it continues a segment that is not here; the log here ends at {ends}")
        return self._fork(segment, branches, place)

    def _check_gone(self, segment: Segment) -> None:
        """Ops may be missing only where the floor says which are live (R3.8): elsewhere that would be a way to delete."""
        if any(op[:1] == GONE for op in segment.ops) and self._until_floor(segment.header.author) < segment.header.last:
            raise RejectedSegment(f"{segment}: ops of it are missing, and it is not below a floor; ask a peer that has them")

    def _until_floor(self, author: bytes) -> int:
        """How far `author`'s log lies below the newest floor that was voted for, whether all of that has come here or not."""
        floors = self._lines.decided_floors
        return floors[-1].seq(author) if floors else 0

    # ---- branches

    def _of(self, author: bytes) -> list[_Branch]:
        if author not in self._branches:
            self._branches[author] = [_Branch.of(row) for row in self._lines.of(author)]
        return self._branches[author]

    def _begin(self, author: bytes, parent: Optional[int], first: int, tip: Tip) -> _Branch:
        branch = _Branch(self._next_id, author, parent, first, tip)
        self._next_id += 1
        self._branches[author].append(branch)
        return branch

    def _fork(self, segment: Segment, branches: Sequence[_Branch], place: Optional[_Place]) -> _Branch:
        if len(branches) >= BRANCHES_MAX:
            raise RejectedSegment(f"{segment}: its author has {BRANCHES_MAX} branches here already; the charter has to name one")
        shared = self._unfinished(place) if place is not None else []
        before = EMPTY if place is None else self._tip_before(place.branch, shared[0].header.first if shared else place.last + 1)
        tip = before
        for one in (*shared, segment):
            tip = admit(one, tip)  # what is refused begins nothing
        self._prove(segment, branches)
        parent = next((branch for branch in branches if place is not None and branch.id == place.branch), None)
        if parent is None:
            branch = self._begin(segment.header.author, None, 1, before)
        elif before.seq + 1 == parent.first:  # it leaves where the parent itself begins: they are siblings
            branch = self._begin(segment.header.author, parent.parent, parent.first, before)
        else:
            branch = self._begin(segment.header.author, parent.id, before.seq + 1, before)
        for copied in shared:
            branch.tip = admit(copied, branch.tip)
            self._append(branch.id, copied)
        return branch

    def _prove(self, segment: Segment, branches: Sequence[_Branch]) -> None:
        """Keep the proof that two segments continue one place (R4.5)."""
        header = segment.header
        ids = [branch.id for branch in branches]
        self._write_rows()
        query = select(_SEGMENT.header, _SEGMENT.signature).where(_SEGMENT.branch.in_(ids), _SEGMENT.first == header.first)
        for raw, signature in self._connection.execute(query).all():
            if decode_header(raw).prev == header.prev:
                proof = codec.encode(tuple(prove(raw, signature, segment.header_bytes, segment.signature)))
                fork = schema.fork.c
                held = select(fork.first).where(fork.author == header.author, fork.first == header.first)
                if self._connection.execute(held).first() is None:
                    self._connection.execute(insert(schema.fork).values(author=header.author, first=header.first, proof=proof))
                return

    def _write_rows(self) -> None:
        """Write the segments taken so far, so that queries find them."""
        bulk_insert(self._connection, schema.segment.name, _SEGMENT_COLUMNS, self._segments)
        failpoint("intake-headers-written")
        bulk_insert(self._connection, schema.op.name, _OP_COLUMNS, self._ops)
        self._segments, self._ops = [], []

    def _find(self, branches: Sequence[_Branch], last: int, header_hash: bytes) -> Optional[_Place]:
        self._write_rows()
        for branch in branches:
            query = select(_SEGMENT.first, _SEGMENT.last, _SEGMENT.hash).where(_SEGMENT.branch == branch.id, _SEGMENT.first <= last)
            row = self._connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
            if row is not None and (row.last, row.hash) == (last, header_hash):
                return _Place(branch.id, row.first, row.last)
        return None

    def _unfinished(self, place: _Place) -> list[Segment]:
        """The segments up to `place` since the last end of a changeset."""
        commit = select(func.coalesce(func.max(_SEGMENT.first), 0)).where(
            _SEGMENT.branch == place.branch, _SEGMENT.first <= place.first, _SEGMENT.commits
        )
        since = self._connection.execute(commit).scalar_one()
        query = select(_SEGMENT.header, _SEGMENT.signature).where(
            _SEGMENT.branch == place.branch, _SEGMENT.first > since, _SEGMENT.first <= place.first
        )
        found = []
        for raw, signature in self._connection.execute(query.order_by(_SEGMENT.first)).all():
            header = decode_header(raw)
            ops = self._connection.execute(
                select(schema.op.c.raw)
                .where(schema.op.c.branch == place.branch, schema.op.c.seq >= header.first, schema.op.c.seq <= header.last)
                .order_by(schema.op.c.seq)
            ).scalars()
            found.append(Segment(header, raw, signature, tuple(ops)))
        return found

    def _tip_before(self, branch: int, seq: int) -> Tip:
        """The end of the last changeset of `branch`, or of what it leaves, before `seq`."""
        query = select(_SEGMENT.last, _SEGMENT.hash, _SEGMENT.header).where(_SEGMENT.branch == branch, _SEGMENT.last < seq)
        row = self._connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
        if row is not None:
            return Tip(row.last, row.hash, decode_header(row.header).stamp, 0)
        parent = next((b for branches in self._branches.values() for b in branches if b.id == branch), None)
        return EMPTY if parent is None or parent.parent is None else self._tip_before(parent.parent, seq)

    def _refused(self, branch: _Branch) -> Optional[str]:
        """Why nothing more of `branch` will ever be applied, or None."""
        if branch.refused is not None:
            return branch.refused
        parent = next((one for one in self._of(branch.author) if one.id == branch.parent), None)
        return self._refused(parent) if parent is not None and parent.applied < branch.first - 1 else None

    def _waiting(self, branch: _Branch) -> int:
        if branch.tip.seq - branch.applied < WAITING_SEGMENTS_MAX:
            return 0  # a segment has at least one op
        query = select(func.count()).where(_SEGMENT.branch == branch.id, _SEGMENT.first > branch.applied)
        return int(self._connection.execute(query).scalar_one())

    def _known(self, segments: Iterable[Segment]) -> set[bytes]:
        """The hashes of those that are stored already."""
        firsts: dict[bytes, set[int]] = {}
        for segment in segments:
            firsts.setdefault(segment.header.author, set()).add(segment.header.first)
        found: set[bytes] = set()
        for author, wanted in firsts.items():
            branches = [branch.id for branch in self._lines.of(author) if branch.last >= min(wanted)]
            for chunk in chunks(sorted(wanted)) if branches else ():
                query = select(_SEGMENT.hash).where(_SEGMENT.branch.in_(branches), is_among(self._connection, _SEGMENT.first, chunk))
                found.update(self._connection.execute(query).scalars())
        return found

    def _write(self, branch: _Branch) -> None:
        tip = {
            "last": branch.tip.seq,
            "hash": branch.tip.hash,
            "stamp_ms": branch.tip.stamp.ms,
            "stamp_logical": branch.tip.stamp.logical,
            "open_segments": branch.tip.open_segments,
        }
        if branch.new:
            fixed = {"id": branch.id, "author": branch.author, "parent": branch.parent, "first": branch.first, "applied": branch.first - 1}
            self._connection.execute(insert(schema.branch).values(**fixed, **tip))
        elif branch.moved:
            self._connection.execute(update(schema.branch).where(_BRANCH.id == branch.id).values(**tip))
        branch.new = branch.moved = False
