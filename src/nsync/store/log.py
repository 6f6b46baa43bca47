"""The log in SQL: taking in segments, applying changesets, publishing one's own (R4.2-R4.4).

Two steps with a commit each. `decode_batch` and `store` verify segments and keep them: what is acknowledged is never lost.
`apply_next` takes the next changeset whose deps are applied and moves slots, pasts, catalogue and head in the caller's
transaction: with the bridge, the one that also writes Rucio's rows. A changeset of one's own goes the same way, in one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Optional

from sqlalchemy import Connection, Row, func, insert, select, update

from nsync.authority.charter import AuthorId, Verify
from nsync.authority.effective import Authority
from nsync.catalogue.judge import judge
from nsync.clock import AHEAD_MS_MAX, Stamp, next_stamp
from nsync.crdt import Dot
from nsync.crdt.past import steps_of
from nsync.errors import RejectedSegment
from nsync.failpoints import failpoint
from nsync.log.admission import admit, check_deps, check_segment, choose_deps
from nsync.log.segment import EMPTY, Dep, Header, Segment, Sign, Tip, build_changeset, decode_frame, name_of, stored_header
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace.keys import Fact, Key
from nsync.store import schema
from nsync.store.state import SqlState

WAITING_SEGMENTS_MAX = 1024
"""Segments of one author that are stored and not applied yet: four changesets of the largest size."""

_SEGMENT = schema.segment.c


class Applied(NamedTuple):
    """A changeset that took effect: the facts whose catalogue entries changed, and statements that had no right to be made."""

    author: AuthorId
    first: int
    last: int
    changed: frozenset[Fact]
    void: int


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


class SqlLog:
    """The logs of all authors, as one transaction sees them. Make one per transaction."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self.connection = connection
        self.authority = authority
        self.state = SqlState(connection, authority)
        self.applying: Optional[bytes] = None

    # ---- what peers ask

    def stored_heads(self) -> list[Head]:
        """The last stored segment of each log, applied or waiting."""
        last = select(_SEGMENT.author, func.max(_SEGMENT.first).label("first")).group_by(_SEGMENT.author).subquery()
        query = (
            select(_SEGMENT.author, _SEGMENT.last, _SEGMENT.hash)
            .join(last, (last.c.author == _SEGMENT.author) & (last.c.first == _SEGMENT.first))
            .order_by(_SEGMENT.author)
        )
        return [Head(*row) for row in self.connection.execute(query)]

    def segments_after(self, have: Mapping[bytes, int], bytes_max: int) -> list[StoredSegment]:
        """The next segments beyond `have`, in the order in which they came here; at least one if there is any, then up to `bytes_max`."""
        found: list[StoredSegment] = []
        size = 0
        behind = [author for author, seq, _ in self.stored_heads() if seq > have.get(author, 0)]
        queries = [
            select(_SEGMENT.arrival, _SEGMENT.author, _SEGMENT.first, _SEGMENT.last, func.length(_SEGMENT.frame).label("size"))
            .where(_SEGMENT.author == author, _SEGMENT.last > have.get(author, 0))
            .order_by(_SEGMENT.first)
            .limit(64)
            for author in behind
        ]
        rows = sorted((row for query in queries for row in self.connection.execute(query)), key=lambda row: int(row.arrival))
        for row in rows:
            if found and size + row.size > bytes_max:
                break
            size += row.size
            frame = self.connection.execute(select(_SEGMENT.frame).where(_SEGMENT.arrival == row.arrival)).scalar_one()
            found.append(StoredSegment(row.author, row.first, row.last, frame))
        return found

    # ---- taking in

    def store(self, segments: Sequence[Segment]) -> Receipt:
        """Store those of `segments`, checked by `decode_batch`, that continue their logs. Known ones count for nothing."""
        tips: dict[bytes, Tip] = {}
        refused: set[bytes] = set()
        stored, rejected = 0, []
        for segment in segments:
            author = segment.header.author
            tip = tips[author] if author in tips else self._stored_tip(author)
            if author in refused or (segment.header.last <= tip.seq and self._known(segment)):
                continue
            try:
                self._check_room(segment)
                tips[author] = admit(segment, tip)
            except RejectedSegment as error:
                refused.add(author)
                rejected.append(f"{self.authority.name(author)}: {error}")
                continue
            self._insert(segment)
            stored += 1
            failpoint("log-segment-stored")
        return Receipt(stored, tuple(rejected))

    def _stored_tip(self, author: bytes) -> Tip:
        query = select(_SEGMENT.last, _SEGMENT.hash, _SEGMENT.stamp_ms, _SEGMENT.stamp_logical).where(_SEGMENT.author == author)
        row = self.connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
        if row is None:
            return EMPTY
        commit = select(func.coalesce(func.max(_SEGMENT.first), 0)).where(_SEGMENT.author == author, _SEGMENT.commits)
        since = select(func.count()).where(_SEGMENT.author == author, _SEGMENT.first > commit.scalar_subquery())
        return Tip(row.last, row.hash, Stamp(row.stamp_ms, row.stamp_logical), self.connection.execute(since).scalar_one())

    def _known(self, segment: Segment) -> bool:
        query = select(_SEGMENT.hash).where(_SEGMENT.author == segment.header.author, _SEGMENT.first == segment.header.first)
        return bool(self.connection.execute(query).scalar() == segment.hash)

    def _check_room(self, segment: Segment) -> None:
        author = segment.header.author
        query = select(func.count()).where(_SEGMENT.state == schema.WAITING, _SEGMENT.author == author)
        waiting = self.connection.execute(query).scalar_one()
        if waiting >= WAITING_SEGMENTS_MAX:
            raise RejectedSegment(f"{segment}: {waiting} segments of its author wait here already; it is taken once they are applied")

    def _insert(self, segment: Segment) -> None:
        header = segment.header
        self.connection.execute(
            insert(schema.segment).values(
                author=header.author,
                first=header.first,
                last=header.last,
                hash=segment.hash,
                stamp_ms=header.stamp.ms,
                stamp_logical=header.stamp.logical,
                commits=header.commit,
                state=schema.WAITING,
                frame=segment.frame,
            )
        )

    # ---- applying

    def heads(self) -> dict[bytes, tuple[Dep, Stamp]]:
        """The end of what is applied of each log."""
        rows = self.connection.execute(select(schema.head))
        return {r.author: (Dep(r.author, r.seq, r.hash), Stamp(r.stamp_ms, r.stamp_logical)) for r in rows}

    def apply_next(self, now_ms: int, passed_over: Collection[bytes] = ()) -> Optional[Applied]:
        """Apply one changeset whose deps are applied, and tell what it changed; None when there is none.

        `passed_over`: authors to leave alone for now. `applying` tells whose changeset it was, should this fail.
        """
        heads = self.heads()
        for author, rows in self._complete_changesets(heads).items():
            if author in passed_over or rows[-1].stamp_ms > now_ms + AHEAD_MS_MAX:
                continue
            headers = [self._load_header(row.arrival) for row in rows]
            if _waits_for(headers, heads, now_ms) is not None:
                continue
            try:
                self._check_deps(headers)
            except RejectedSegment as error:
                self._refuse(author, headers[0].first, str(error))
                continue
            self.applying = author
            return self._apply(AuthorId(author), rows)
        return None

    def waits(self, now_ms: int) -> dict[bytes, str]:
        """For each log whose next changeset is here and is not applied yet: which one, and what it waits for."""
        heads = self.heads()
        found = {}
        for author, rows in self._complete_changesets(heads).items():
            headers = [self._load_header(row.arrival) for row in rows]
            reason = _waits_for(headers, heads, now_ms)
            if reason is not None:
                found[author] = f"{name_of(author, headers[0].first, headers[-1].last)} {reason}"
        return found

    def _complete_changesets(self, heads: Mapping[bytes, tuple[Dep, Stamp]]) -> dict[bytes, list[Row[tuple[int, bool]]]]:
        """For each author the segments of the next changeset, where all of it is here and nothing of it refused."""
        authors = self.connection.execute(select(_SEGMENT.author).where(_SEGMENT.state == schema.WAITING).distinct()).scalars().all()
        found = {}
        for author in sorted(authors):
            after = heads[author][0].seq if author in heads else 0
            query = select(_SEGMENT.arrival, _SEGMENT.commits, _SEGMENT.state, _SEGMENT.stamp_ms).where(
                _SEGMENT.author == author, _SEGMENT.first > after
            )
            rows = []
            for row in self.connection.execute(query.order_by(_SEGMENT.first)):
                if row.state == schema.REFUSED:
                    break
                rows.append(row)
                if row.commits:
                    found[author] = rows
                    break
        return found

    def _check_deps(self, headers: Sequence[Header]) -> None:
        """Raises RejectedSegment for deps that no honest author names. All of them are applied."""
        named = self.state.pasts.at(Dot(headers[0].author, headers[0].first))
        for header in headers:
            check_deps(header, named, {dep: self._commit_stamp(dep) for dep in header.deps})
            named.update({dep.author: dep.seq for dep in header.deps})

    def _commit_stamp(self, dep: Dep) -> Optional[Stamp]:
        query = select(_SEGMENT.stamp_ms, _SEGMENT.stamp_logical).where(
            _SEGMENT.author == dep.author, _SEGMENT.first <= dep.seq, _SEGMENT.last == dep.seq, _SEGMENT.hash == dep.hash, _SEGMENT.commits
        )
        row = self.connection.execute(query).first()
        return Stamp(*row) if row is not None else None

    def _refuse(self, author: bytes, first: int, reason: str) -> None:
        """Mark a changeset that is stored and signed, and still cannot be applied: nothing of its author is, from there on."""
        self.connection.execute(
            update(schema.segment).where(_SEGMENT.author == author, _SEGMENT.first >= first).values(state=schema.REFUSED, reason=reason)
        )

    def _apply(self, author: AuthorId, rows: Sequence[Row[tuple[int, bool]]]) -> Applied:
        touched: set[Key] = set()
        void = 0
        segment = first = None
        for row in rows:
            segment = self._load(row.arrival)
            first = first or segment.header.first
            judged = judge(self.authority, segment)
            void += judged.void
            touched |= self._acknowledge(segment.header)
            touched |= self.state.join(judged.effective)
            self.state.wait(judged.waiting)
        assert segment is not None and first is not None
        failpoint("log-slots-joined")
        self._advance(segment, first)
        failpoint("log-head-advanced")
        return Applied(author, first, segment.header.last, frozenset(self.state.refresh(touched)), void)

    def _acknowledge(self, header: Header) -> set[Key]:
        """Let the past of `header`'s author grow; returns the keys about which that settles something."""
        pasts = self.state.pasts
        before = pasts.at(Dot(header.author, header.first))
        steps = steps_of(pasts, header.author, header.first, [Dot(dep.author, dep.seq) for dep in header.deps])
        pasts.add(steps)
        touched: set[Key] = set()
        for step in steps:
            settled, moved = self.state.acknowledge(header.author, step.other, before.get(step.other, 0), step.seq)
            touched |= moved | self.state.join(settled)
        return touched

    def _advance(self, segment: Segment, first: int) -> None:
        header = segment.header
        self.connection.execute(
            update(schema.segment)
            .where(_SEGMENT.author == header.author, _SEGMENT.first >= first, _SEGMENT.first <= header.first)
            .values(state=schema.APPLIED)
        )
        end = {"seq": header.last, "hash": segment.hash, "stamp_ms": header.stamp.ms, "stamp_logical": header.stamp.logical}
        moved = self.connection.execute(update(schema.head).where(schema.head.c.author == header.author).values(**end))
        if moved.rowcount == 0:
            self.connection.execute(insert(schema.head).values(author=header.author, **end))

    def _load(self, arrival: int) -> Segment:
        return decode_frame(self._frame(arrival))

    def _load_header(self, arrival: int) -> Header:
        return stored_header(self._frame(arrival))

    def _frame(self, arrival: int) -> bytes:
        frame: bytes = self.connection.execute(select(_SEGMENT.frame).where(_SEGMENT.arrival == arrival)).scalar_one()
        return frame

    # ---- publishing

    def is_applied(self, author: bytes) -> bool:
        """Whether everything stored of `author`'s log is applied."""
        query = select(_SEGMENT.arrival).where(_SEGMENT.author == author, _SEGMENT.state != schema.APPLIED).limit(1)
        return self.connection.execute(query).first() is None

    def publish(self, ops: Sequence[bytes], author: AuthorId, sign: Sign, now_ms: int) -> Applied:
        """Sign `ops` as a changeset that has seen everything applied here, store it and apply it: the way of a stranger's (STYLE 6)."""
        heads = self.heads()
        tip = self._stored_tip(author)
        assert tip.seq == (heads[author][0].seq if author in heads else 0), "one's own log is applied as it is written"
        deps = choose_deps(author, {a: dep for a, (dep, _) in heads.items()}, self.state.pasts.at, tip.seq)
        charter = self.authority.charter
        stamp = next_stamp(now_ms, [tip.stamp, *(stamp for _, stamp in heads.values())])
        for segment in build_changeset(
            ops, federation=charter.federation, charter_version=charter.version, author=author, tip=tip, stamp=stamp, deps=deps, sign=sign
        ):
            tip = admit(segment, tip)  # like anybody's
            self._insert(segment)
        failpoint("publish-signed")
        rows = self._complete_changesets(heads)[author]
        return self._apply(author, rows)


def _waits_for(headers: Sequence[Header], heads: Mapping[bytes, tuple[Dep, Stamp]], now_ms: int) -> Optional[str]:
    """What a whole changeset waits for, or None. A dep on its own log is none to wait for: it is refused."""
    ahead_ms = headers[-1].stamp.ms - now_ms
    if ahead_ms > AHEAD_MS_MAX:
        return f"is stamped {ahead_ms} ms ahead of the clock here, and is applied once time has caught up"
    for dep in (dep for header in headers for dep in header.deps if dep.author != header.author):
        if dep.author not in heads or heads[dep.author][0].seq < dep.seq:
            return f"waits for {dep.author.hex()[:12]} {dep.seq}, which is not applied here yet"
    return None
