"""The log in SQL: taking in segments, applying changesets, publishing one's own (R4.2-R4.4).

Two steps with a commit each. `store` keeps verified segments: what is acknowledged is never lost. `apply_next` takes the next changeset
whose deps are applied and moves index, pasts, catalogue and head in the caller's transaction: with the bridge, the one that also
writes Rucio's rows. A changeset of one's own goes the same way, in one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Optional

from sqlalchemy import Connection, select, update

from nsync.authority.charter import AuthorId, Charter, Place
from nsync.authority.effective import Authority
from nsync.clock import AHEAD_MS_MAX, Stamp, next_stamp
from nsync.errors import RejectedSegment
from nsync.failpoints import failpoint
from nsync.log.admission import check_deps
from nsync.log.floor import Vote, encode_vote
from nsync.log.forks import Mark, line_to
from nsync.log.segment import (
    DEPS_MAX,
    EMPTY,
    GONE,
    Dep,
    Header,
    Segment,
    Sign,
    Tip,
    build_changeset,
    decode_header,
    header_hash,
    leaf_of,
    name_of,
)
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.store import live, recovery, schema, serving
from nsync.store.adoption import adopt
from nsync.store.bulk import bulk_insert
from nsync.store.collector import collector_paused
from nsync.store.compaction import is_compact
from nsync.store.intake import Intake, decode_batch
from nsync.store.lines import BranchRow, SqlLines
from nsync.store.rebuild import rebuild
from nsync.store.state import SqlState

_SEGMENT, _BRANCH = schema.segment.c, schema.branch.c


PART_STATEMENTS = 1 << 15
"""Of a changeset, after which the catalogue is brought up to date, within its transaction: so that only these are in memory."""


class Applied(NamedTuple):
    """A changeset that took effect: how many catalogue entries changed (`SqlState.changes`), and statements that count for nothing."""

    author: AuthorId
    first: int
    last: int
    changed: int
    void: int


class _Changeset(NamedTuple):
    """The next changeset of a branch, whole."""

    branch: BranchRow
    headers: list[Header]


class SqlLog:
    """The logs of all authors, as one transaction sees them. Make one per transaction."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self.connection = connection
        self.authority = authority
        self.lines = SqlLines(connection, authority.charter)
        self.applying: Optional[bytes] = None

    @cached_property
    def state(self) -> SqlState:
        """Slots, claims and catalogue."""
        return SqlState(self.connection, self.lines)

    # ---- what peers ask

    def stored_heads(self) -> list[Head]:
        """The end of each branch of each log, applied or waiting."""
        return serving.heads(self.lines)

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        """Those of a peer's heads whose segments are not stored here."""
        return serving.unknown(self.connection, self.lines, theirs)

    def locator(self, author: bytes) -> list[Place]:
        """What is stored of `author`'s log, as places to ask from (serving.locator)."""
        return serving.locator(self.connection, self.lines, author)

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        """The next segments of the authors in `have`, beyond the places given for each, in the order in which they came here."""
        return serving.segments_after(self.connection, self.lines, have, bytes_max)

    # ---- taking in

    def store(self, segments: Sequence[Segment]) -> Receipt:
        """Store those of `segments`, checked by `decode_batch`, that continue their logs."""
        receipt = Intake(self.connection, self.lines).store(segments)
        failpoint("log-segment-stored")
        return receipt

    # ---- applying

    def heads(self) -> dict[int, BranchRow]:
        """The branches of which something is applied."""
        return {id: branch for id, branch in self.lines.branches.items() if branch.head is not None}

    def apply_next(self, now_ms: int, passed_over: Collection[bytes] = (), catalogue: bool = True) -> Optional[Applied]:
        """Apply one changeset whose deps are applied, and tell what it changed; None when there is none.

        `passed_over`: authors to leave alone for now. `applying` tells whose changeset it was, should this fail. Without
        `catalogue` nothing is shown of it until `rebuild`: a newcomer that takes in millions of ops derives them once, at the end.
        """
        for changeset in self._complete_changesets():
            author = changeset.branch.author
            if author in passed_over or self._waits_for(changeset, now_ms) is not None:
                continue
            try:
                deps = self._check(changeset)
            except RejectedSegment as error:
                self._refuse(changeset.branch, str(error))
                continue
            self.applying = author
            return self._apply(changeset, deps, catalogue)
        return None

    def waits(self, now_ms: int) -> dict[bytes, str]:
        """For each log whose next changeset is here and is not applied yet: which one, and what it waits for."""
        found = {}
        for changeset in self._complete_changesets():
            reason = self._waits_for(changeset, now_ms)
            if reason is not None:
                author, headers = changeset.branch.author, changeset.headers
                found[author] = f"{name_of(author, headers[0].first, headers[-1].last)} {reason}"
        return found

    def _complete_changesets(self) -> list[_Changeset]:
        """For each branch the next changeset, where all of it is here and nothing of it refused."""
        found = []
        for branch in self.lines.branches.values():
            parent = self.lines.branches.get(branch.parent) if branch.parent is not None else None
            if branch.applied == branch.last or branch.refused is not None or (parent is not None and parent.applied < branch.first - 1):
                continue
            query = select(_SEGMENT.header, _SEGMENT.commits).where(_SEGMENT.branch == branch.id, _SEGMENT.first > branch.applied)
            headers = []
            for row in self.connection.execute(query.order_by(_SEGMENT.first)):
                headers.append(decode_header(row.header))
                if row.commits:
                    found.append(_Changeset(branch, headers))
                    break
        return sorted(found, key=lambda changeset: (changeset.branch.author, changeset.branch.id))

    def _waits_for(self, changeset: _Changeset, now_ms: int) -> Optional[str]:
        """What a whole changeset waits for, or None. A dep on its own log is none to wait for: it is refused."""
        ahead_ms = changeset.headers[-1].stamp.ms - now_ms
        if ahead_ms > AHEAD_MS_MAX:
            return f"is stamped {ahead_ms} ms ahead of the clock here, and is applied once time has caught up"
        for header in changeset.headers:
            for dep in header.deps:
                if dep.author != header.author and self._mark(dep) is None:
                    return f"waits for {dep.author.hex()[:12]} {dep.seq}, which is not applied here yet"
        return None

    def _check(self, changeset: _Changeset) -> list[tuple[Header, list[Mark]]]:
        """The places that each segment names. Raises RejectedSegment for deps that no honest author names. All of them are applied."""
        tree = self.lines.branches_tree
        start = Mark(changeset.branch.id, changeset.headers[0].first)
        seen = self.lines.past(start)
        found = []
        for header in changeset.headers:
            marks = {dep: self._mark(dep) for dep in header.deps}
            stamps = {dep: self._stamp(dep, mark) if mark is not None else None for dep, mark in marks.items()}
            check_deps(header, stamps, lambda dep, marks=marks: _saw(seen, marks[dep]))  # type: ignore[misc]
            deps = [mark for mark in marks.values() if mark is not None]
            for dep in deps:
                for branch, seq in [*line_to(tree, dep), *self.lines.past(dep).items()]:
                    seen[branch] = max(seq, seen.get(branch, 0))
            found.append((header, deps))
        self._check_succession(changeset, seen)
        return found

    def _check_succession(self, changeset: _Changeset, seen: Mapping[int, int]) -> None:
        """A new incarnation has seen all that its predecessor said (R4.6)."""
        header = changeset.headers[0]
        instance = self.authority.charter.by_author(header.author)
        lives = [life.author for life in instance.past] if instance is not None else []
        if header.first != 1 or instance is None or header.author in lives[:1] or not lives:
            return
        index = lives.index(header.author) if header.author in lives else len(lives)
        before = instance.incarnations[index - 1]
        if before.final is None or before.final.seq == 0:
            return
        mark = self.lines.mark(before.author, before.final)
        if mark is None or not _saw(seen, mark):
            raise RejectedSegment(
                f"{name_of(header.author, header.first, header.last)} of {instance.name}: a new incarnation that has not seen the end of "
                f"the one before it, {before.author.hex()[:12]} {before.final.seq}; it begins once its node has fetched that"
            )

    def _mark(self, dep: Dep) -> Optional[Mark]:
        return self.lines.mark(dep.author, Place(dep.seq, dep.hash))

    def _stamp(self, dep: Dep, mark: Mark) -> Optional[Stamp]:
        """The stamp of the segment that ends at `mark`, if it ends a changeset."""
        branch = self.lines.branches[mark.branch]
        if branch.applied == mark.seq:
            return branch.applied_stamp
        query = select(_SEGMENT.header, _SEGMENT.commits).where(_SEGMENT.branch == mark.branch, _SEGMENT.first <= mark.seq)
        row = self.connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).one()
        return decode_header(row.header).stamp if row.commits else None

    def _refuse(self, branch: BranchRow, reason: str) -> None:
        """Mark a branch whose next changeset is signed and still cannot be applied: nothing of it is, from there on."""
        self.connection.execute(update(schema.branch).where(_BRANCH.id == branch.id).values(refused=reason))
        self.lines.forget()

    def _apply(self, changeset: _Changeset, deps: Sequence[tuple[Header, list[Mark]]], catalogue: bool = True) -> Applied:
        branch, headers = changeset.branch, changeset.headers
        self.state.changes.clear()
        void, before = 0, self.state.readings()
        for header, marks in deps:
            self.state.see(branch, header, self.lines.grow(branch.id, header.first, marks))
            ops = serving.ops_of(self.connection, branch.id, header.first, header.last)
            with collector_paused():
                self.state.take(branch, header, ops, catalogue)
            if header.commit or self.state.said >= PART_STATEMENTS:
                failpoint("log-slots-joined")
                self._advance(branch, header)
                failpoint("log-head-advanced")
                if catalogue:
                    self.state.settle(before)
                else:
                    self.state.defer()
                void += self.state.void()
                before = self.state.readings()
        failpoint("log-catalogue-shown")
        return Applied(AuthorId(branch.author), headers[0].first, headers[-1].last, len(self.state.changes), void)

    def _advance(self, branch: BranchRow, header: Header) -> None:
        query = select(_SEGMENT.hash).where(_SEGMENT.branch == branch.id, _SEGMENT.first == header.first)
        end = {
            "applied": header.last,
            "applied_hash": self.connection.execute(query).scalar_one(),
            "applied_stamp_ms": header.stamp.ms,
            "applied_stamp_logical": header.stamp.logical,
        }
        self.connection.execute(update(schema.branch).where(_BRANCH.id == branch.id).values(**end))
        self.lines.forget()
        self.lines.use_floors()

    # ---- floors and charters

    def vote(self, votes: Collection[Vote]) -> int:
        """Keep votes for floors, checked by `decode_vote`; returns how many entries a new floor changed (`SqlState.changes`)."""
        before = self.state.readings()
        for vote in votes:
            raw = encode_vote(vote)
            row = {"number": vote.floor.number, "author": vote.author, "hash": header_hash(raw), "raw": raw}
            bulk_insert(self.connection, schema.vote.name, list(row), [tuple(row.values())], skip_known=True)
        self.lines.count_votes()
        self.state.settle(before)
        return len(self.state.changes)

    def rebuild(self) -> int:
        """Derive the catalogue anew from all that counts, in bounded memory; returns how many ops were read."""
        return rebuild(self.state)

    def compact(self, ms_max: float = math.inf) -> int:
        """Collect below the newest floor what it lets go (R4.7), for about `ms_max`; returns how many ops went."""
        return live.collect(self.connection, self.lines, self.state, ms_max)

    def is_compact(self) -> bool:
        """Whether nothing is left to do for `compact`."""
        return is_compact(self.connection, self.lines) and live.is_kept(self.connection, self.lines)

    def live_of(self, heads: Mapping[bytes, int]) -> bytes:
        """The digest of what is live below `heads`, once they are a floor: what a vote for them signs (R4.8)."""
        return live.live_of(self.connection, self.lines, self.state, heads)

    def is_whole(self) -> bool:
        """Whether what is live here below the newest floor is what its signers signed."""
        return live.is_whole(self.connection, self.lines, self.state)

    def stored_ops(self, author: bytes, until: int) -> list[tuple[int, bytes, bool]]:
        """The ops of `author`'s line up to `until`: seq, hash, and whether compaction took it."""
        found, after = [], 0
        for part in self.lines.line(author):
            raws = serving.ops_of(self.connection, part.branch, after + 1, min(part.seq, until))
            found += [(seq, leaf_of(raw), raw[:1] == GONE) for seq, raw in enumerate(raws, after + 1)]
            after = min(part.seq, until)
        return found

    def adopt(self, charter: Charter) -> int:
        """Go over to an amended charter; returns how many entries that changed (`SqlState.changes`)."""
        adopt(self.state, charter)
        self.authority = Authority(charter)
        return len(self.state.changes)

    # ---- publishing

    def is_applied(self, author: bytes) -> bool:
        """Whether everything stored of `author`'s log is applied."""
        return all(branch.applied == branch.last for branch in self.lines.of(author))

    def read_only(self, author: bytes) -> Optional[str]:
        """Why `author` signs nothing more, or None (R4.6)."""
        return recovery.read_only(self.connection, self.lines, author)

    def heard(self, author: bytes, theirs: Collection[Head]) -> Optional[str]:
        """Compare this instance's own log with a peer's copy of it: one that has more, or another one, makes `author` read-only."""
        return recovery.heard(self.connection, self.lines, author, theirs)

    def publish(self, ops: Sequence[bytes], author: AuthorId, sign: Sign, now_ms: int, catalogue: bool = True) -> Applied:
        """Sign `ops` as a changeset that has seen everything applied here, store it and apply it: the way of a stranger's (STYLE 6)."""
        reason = self.read_only(author)
        assert reason is None and self.is_applied(author), f"one's own log is applied as it is written: {reason}"
        own = self.lines.of(author)
        tip = Tip(own[0].last, own[0].hash, Stamp(own[0].stamp_ms, own[0].stamp_logical), 0) if own else EMPTY
        heads = self.heads()
        charter = self.authority.charter
        segments = build_changeset(
            ops,
            federation=charter.federation,
            charter_version=charter.version,
            author=author,
            tip=tip,
            stamp=next_stamp(now_ms, [tip.stamp, *(branch.applied_stamp for branch in heads.values())]),
            deps=self._choose_deps(author, tip.seq),
            sign=sign,
        )
        intake = Intake(self.connection, self.lines)
        for segment in segments:
            intake.add(segment)
        intake.flush()
        failpoint("publish-signed")
        (mine,) = (changeset for changeset in self._complete_changesets() if changeset.branch.author == author)
        return self._apply(mine, self._check(mine), catalogue)

    def _choose_deps(self, author: bytes, tip: int) -> list[Dep]:
        """The maximal heads that `author`'s log had not seen before (R4.1); of too many as a header holds, the others with the next."""
        own = self.lines.of(author)
        before = self.lines.past(Mark(own[0].id, tip)) if own else {}
        fresh = {
            id: head for id, b in self.heads().items() if b.author != author and (head := b.head) and not _saw(before, Mark(id, b.applied))
        }
        pasts = {id: self.lines.closure([Mark(id, head.seq)]) for id, head in fresh.items()}
        covered = {id for id, head in fresh.items() for other, past in pasts.items() if other != id and past.get(id, 0) >= head.seq}
        return sorted(head for id, head in fresh.items() if id not in covered)[:DEPS_MAX]


def _saw(seen: Mapping[int, int], mark: Optional[Mark]) -> bool:
    return mark is not None and seen.get(mark.branch, 0) >= mark.seq


__all__ = ["Applied", "SqlLog", "decode_batch"]
