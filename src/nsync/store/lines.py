"""The lines of all logs as one transaction sees them: branches, heads, pasts, floors, grants (authority.rulings.Lines).

A dot (author, seq) means the place on the author's line that stands; nearly every author has one branch, and it is that one. Each
question about a past is one seek in `nsync_step`. Branches and floors are few, and read whole. Grants and revocations are as many as
their author likes: those of one instance are read when one of its scopes is asked about, so that it can slow nothing but these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Optional

from sqlalchemy import Connection, delete, func, insert, select, update

from nsync.authority.charter import Charter, Incarnation, Place
from nsync.authority.rulings import Given
from nsync.clock import Stamp
from nsync.crdt import Dot
from nsync.log import forks
from nsync.log.floor import Floor, Vote, decided, encode_floor, place, read_floor, read_vote
from nsync.log.forks import Branch, Line, Mark, holds, line_to, standing
from nsync.log.segment import Dep
from nsync.namespace.ops import Grant, decode_op
from nsync.store import schema

_BRANCH, _STEP, _SEGMENT, _FLOOR, _VOTE = schema.branch.c, schema.step.c, schema.segment.c, schema.floor.c, schema.vote.c
_OP, _GRANT, _REVOCATION = schema.op.c, schema.grant.c, schema.revocation.c


class BranchRow(NamedTuple):
    """A row of `nsync_branch`."""

    id: int
    author: bytes
    parent: Optional[int]
    first: int
    last: int
    hash: bytes
    stamp_ms: int
    stamp_logical: int
    open_segments: int
    applied: int
    applied_hash: Optional[bytes]
    applied_stamp_ms: Optional[int]
    applied_stamp_logical: Optional[int]
    refused: Optional[str]

    @property
    def head(self) -> Optional[Dep]:
        """The end of what is applied here; None as long as nothing of this branch is."""
        return None if self.applied_hash is None else Dep(self.author, self.applied, self.applied_hash)  # type: ignore[arg-type]

    @property
    def applied_stamp(self) -> Stamp:
        """The stamp of `head`."""
        return Stamp(self.applied_stamp_ms or 0, self.applied_stamp_logical or 0)


class SqlLines:
    """What rulings and readings ask. Make one per transaction; `forget` what is kept when the log moves under it."""

    def __init__(self, connection: Connection, charter: Charter) -> None:
        self._connection = connection
        self.charter = charter
        self._lines: dict[bytes, Line] = {}
        self._until: dict[int, int] = {}
        self._seen: dict[tuple[int, int, int], Optional[int]] = {}
        self._given: dict[bytes, tuple[Given, ...]] = {}

    def forget(self) -> None:
        """Read anew what may have changed."""
        self._lines.clear()
        self._until.clear()
        self._seen.clear()
        self._given.clear()
        self.__dict__.pop("branches", None)

    # ---- branches and lines

    @cached_property
    def branches(self) -> dict[int, BranchRow]:
        """Every branch of every log."""
        return {row.id: BranchRow(*row) for row in self._connection.execute(select(schema.branch).order_by(_BRANCH.id))}

    def of(self, author: bytes) -> list[BranchRow]:
        """The branches of `author`'s log."""
        return [branch for branch in self.branches.values() if branch.author == author]

    def line(self, author: bytes) -> Line:
        """The line of `author`'s log that stands (R4.5)."""
        if author not in self._lines:
            life = self.charter.life(author)
            self._lines[author] = self._stands(life) if life is not None else forks.NOTHING
        return self._lines[author]

    def _tree(self, author: bytes) -> dict[int, Branch]:
        """The branches that are applied."""
        return {b.id: Branch(b.id, b.parent, b.first) for b in self.of(author) if b.applied_hash is not None}

    def _stands(self, life: Incarnation) -> Line:
        tree = self._tree(life.author)
        if not tree:
            return forks.NOTHING
        floor = self.usable_floors[-1] if self.usable_floors else None
        below = place(floor, life.author) if floor is not None else None
        final = self.mark(life.author, life.final) if life.final is not None else None
        mark = self.mark(life.author, below) if below is not None else None
        views: list[Mark] = []
        if len(tree) > 1:
            member = self._member(life.author)
            found = [self._view(instance.incarnations, tree, mark) for m, instance in self.charter.voters().items() if m != member]
            views = [view for view in found if view is not None]
        line = standing(tree, final=final, floor=mark, acknowledged=views, members=len(self.charter.members))
        if life.final is None or final is not None:
            return line
        return self._cut(line, max(life.final.seq, mark.seq if mark is not None else 0))

    def _cut(self, line: Line, seq: int) -> Line:
        """`line` up to the last end of a changeset at or before `seq`."""
        found = forks.cut(line, seq)
        if not found or found[-1].seq < seq:
            return found
        *rest, end = found
        query = select(func.max(_SEGMENT.last)).where(_SEGMENT.branch == end.branch, _SEGMENT.commits, _SEGMENT.last <= seq)
        last = self._connection.execute(query).scalar()
        return (*rest, Mark(end.branch, last)) if last is not None else tuple(rest)

    def _member(self, author: bytes) -> Optional[str]:
        instance = self.charter.by_author(author)
        return instance.member if instance is not None else None

    def _view(self, lives: Iterable[Incarnation], tree: Mapping[int, Branch], floor: Optional[Mark]) -> Optional[Mark]:
        """What a voter had seen of a forked log when it last was one line to it."""
        seen: dict[int, int] = {}
        view: Optional[Mark] = None
        floor_line = line_to(tree, floor) if floor is not None else forks.NOTHING
        for life in lives:
            own = standing(self._tree(life.author), floor=self._floor_mark(life.author))
            for mark in own if life.final is None else self._cut(own, life.final.seq):
                query = select(_STEP.other, _STEP.seq).where(
                    _STEP.branch == mark.branch, _STEP.other.in_(list(tree)), _STEP.position <= mark.seq
                )
                by_position: dict[int, list[tuple[int, int]]] = {}
                for other, seq, position in self._connection.execute(query.add_columns(_STEP.position).order_by(_STEP.position)):
                    by_position.setdefault(position, []).append((other, seq))
                for steps in by_position.values():
                    seen.update(steps)
                    found = forks.view_of(tree, seen, floor_line)
                    if not found.line:
                        return view
                    view = found.end or view
        return view

    def _floor_mark(self, author: bytes) -> Optional[Mark]:
        below = place(self.usable_floors[-1], author) if self.usable_floors else None
        return self.mark(author, below) if below is not None else None

    def mark(self, author: bytes, where: Place) -> Optional[Mark]:
        """The branch on which `where` lies, if its segment is applied here."""
        for branch in self.of(author):
            if branch.applied_hash == where.hash and branch.applied == where.seq:
                return Mark(branch.id, branch.applied)
            if branch.first <= where.seq <= branch.applied:
                query = select(_SEGMENT.last, _SEGMENT.hash).where(_SEGMENT.branch == branch.id, _SEGMENT.first <= where.seq)
                row = self._connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).first()
                if row is not None and (row.last, row.hash) == (where.seq, where.hash):
                    return Mark(branch.id, where.seq)
        return None

    def on_line(self, dot: Dot) -> Optional[Mark]:
        """The branch on which the place of a standing dot lies."""
        for mark in self.line(dot.author):
            if dot.seq <= mark.seq:
                return Mark(mark.branch, dot.seq)
        return None

    def stands(self, mark: Mark) -> bool:
        """Whether what lies at `mark` counts in the readings."""
        if mark.branch not in self._until:
            line = self.line(self.branches[mark.branch].author)
            self._until[mark.branch] = next((part.seq for part in line if part.branch == mark.branch), 0)
        return mark.seq <= self._until[mark.branch]

    # ---- pasts

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        mark = self.on_line(dot)
        if mark is None:
            return None
        for part in self.line(author):
            position = self._position(part.branch, mark)
            if position is not None and position <= part.seq:
                return position
        return None

    def _position(self, branch: int, mark: Mark) -> Optional[int]:
        """The first position of `branch` that has seen `mark`."""
        question = (branch, mark.branch, mark.seq)
        if question not in self._seen:
            query = select(_STEP.position).where(_STEP.branch == branch, _STEP.other == mark.branch, _STEP.seq >= mark.seq)
            self._seen[question] = self._connection.execute(query.order_by(_STEP.seq).limit(1)).scalar()
        return self._seen[question]

    def past(self, mark: Mark) -> dict[int, int]:
        """What the op at `mark` had seen: of each branch, up to which seq; its own line before it is not listed."""
        found: dict[int, int] = {}
        for part in line_to(self.branches_tree, mark):
            last = (
                select(_STEP.seq)
                .where(_STEP.branch == part.branch, _STEP.other == _BRANCH.id, _STEP.position <= part.seq)
                .order_by(_STEP.position.desc())
                .limit(1)
                .correlate(schema.branch)
                .scalar_subquery()
            )
            for other, seq in self._connection.execute(select(_BRANCH.id, last)):
                if seq is not None:
                    found[other] = max(seq, found.get(other, 0))
        return found

    @property
    def branches_tree(self) -> dict[int, Branch]:
        """The branches as `log.forks` takes them."""
        return {b.id: Branch(b.id, b.parent, b.first) for b in self.branches.values()}

    def closure(self, deps: Iterable[Mark]) -> dict[int, int]:
        """What a segment with these deps sees by them."""
        reached: dict[int, int] = {}
        tree = self.branches_tree
        for dep in deps:
            for other, seq in [*line_to(tree, dep), *self.past(dep).items()]:
                reached[other] = max(seq, reached.get(other, 0))
        return reached

    def grow(self, branch: int, first: int, deps: Sequence[Mark]) -> dict[int, tuple[int, int]]:
        """Store what a segment of `branch` at `first` with these deps sees more than what its author had; other → (before, now)."""
        if not deps:
            return {}
        before = self.past(Mark(branch, first))
        own = {mark.branch: mark.seq for mark in line_to(self.branches_tree, Mark(branch, first))}
        grown = {
            other: (before.get(other, 0), seq)
            for other, seq in sorted(self.closure(deps).items())
            if seq > before.get(other, 0) and seq > own.get(other, 0)
        }
        if grown:
            rows = [{"branch": branch, "other": other, "position": first, "seq": seq} for other, (_, seq) in grown.items()]
            self._connection.execute(insert(schema.step), rows)
            self._seen.clear()
        return grown

    # ---- what rulings ask besides

    def head(self, author: bytes) -> int:
        line = self.line(author)
        return min(self.branches[line[-1].branch].applied, line[-1].seq) if line else 0

    # ---- floors

    @cached_property
    def decided_floors(self) -> list[Floor]:
        """The floors that the votes make, whether all below them is here or not."""
        return [read_floor(raw) for raw in self._connection.execute(select(_FLOOR.raw).order_by(_FLOOR.number)).scalars()]

    @cached_property
    def usable_floors(self) -> list[Floor]:
        """The floors whose heads are all applied here, each holding the one before."""
        query = select(_FLOOR.raw).where(_FLOOR.usable).order_by(_FLOOR.number)
        return [read_floor(raw) for raw in self._connection.execute(query).scalars()]

    @cached_property
    def _floors(self) -> Sequence[Mapping[bytes, int]]:
        return [{head.author: head.seq for head in floor.heads} for floor in self.usable_floors]

    def floors(self) -> Sequence[Mapping[bytes, int]]:
        return self._floors

    def votes(self, number: Optional[int] = None) -> list[Vote]:
        """The votes stored here, for that floor or all."""
        query = select(_VOTE.raw) if number is None else select(_VOTE.raw).where(_VOTE.number == number)
        return [read_vote(raw) for raw in self._connection.execute(query).scalars()]

    def judge_by(self, charter: Charter) -> None:
        """Go over to another charter, by which other floors may be decided."""
        self.charter = charter
        self._connection.execute(delete(schema.floor))
        self.forget()
        self._floors_moved()
        self.count_votes()

    def count_votes(self) -> None:
        """Put down the floors that became decided."""
        before = self.decided_floors[-1] if self.decided_floors else None
        while (floor := decided(self.votes(1 if before is None else before.number + 1), self.charter, before)) is not None:
            self._connection.execute(insert(schema.floor).values(number=floor.number, raw=encode_floor(floor), usable=False))
            self._floors_moved()
            before = floor
        self.use_floors()

    def use_floors(self) -> None:
        """Put down which floors became usable."""
        for floor in self.decided_floors[len(self.usable_floors) :]:
            if not self._is_usable(floor):
                return
            self._connection.execute(update(schema.floor).where(_FLOOR.number == floor.number).values(usable=True))
            self._floors_moved()
            self.forget()

    def _is_usable(self, floor: Floor) -> bool:
        """Whether the heads of `floor` are applied here, and hold the one before."""
        tree = self.branches_tree
        marks = {head.author: self.mark(head.author, Place(head.seq, head.hash)) for head in floor.heads}
        if any(mark is None for mark in marks.values()):
            return False
        for head in self.usable_floors[-1].heads if self.usable_floors else ():
            mark, now = self.mark(head.author, Place(head.seq, head.hash)), marks.get(head.author)
            if mark is None or now is None or not holds(line_to(tree, now), mark):
                return False
        return True

    def _floors_moved(self) -> None:
        for name in ("decided_floors", "usable_floors", "_floors"):
            self.__dict__.pop(name, None)

    # ---- grants

    def given(self, author: bytes) -> Sequence[Given]:
        if author not in self._given:
            self._given[author] = tuple(self._grants(author))
        return self._given[author]

    def _grants(self, author: bytes) -> Iterator[Given]:
        revoked = self._revoked(author)
        query = select(_OP.branch, _OP.seq, _OP.raw).join(schema.grant, (_GRANT.branch == _OP.branch) & (_GRANT.seq == _OP.seq))
        grants = query.where(_GRANT.branch.in_([branch.id for branch in self.of(author)])).order_by(_OP.branch, _OP.seq)
        for branch, seq, raw in self._connection.execute(grants):
            (word,) = decode_op(raw)
            assert isinstance(word, Grant)
            if self.stands(Mark(branch, seq)):
                dot = Dot(author, seq)
                yield Given(dot, word, tuple(revoked.get(dot, ())))

    def _revoked(self, author: bytes) -> Mapping[Dot, Sequence[Dot]]:
        """What the instance of `author` revoked, by any of its incarnations: the dot of a grant → those of its revocations."""
        instance = self.charter.by_author(author)
        lives = [life.author for life in instance.incarnations] if instance is not None else [author]
        by_id = {branch.id: branch.author for life in lives for branch in self.of(life)}
        query = select(schema.revocation).where(_REVOCATION.branch.in_(by_id)).order_by(_REVOCATION.branch, _REVOCATION.seq)
        found: dict[Dot, list[Dot]] = {}
        for row in self._connection.execute(query):
            if self.stands(Mark(row.branch, row.seq)):
                found.setdefault(Dot(row.grant_author, row.grant_seq), []).append(Dot(by_id[row.branch], row.seq))
        return found
