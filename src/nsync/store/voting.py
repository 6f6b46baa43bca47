"""What a voter asks of its log in SQL: what it can propose, and whether a proposal is right (log.voting.Here)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from sqlalchemy import select

from nsync.authority.charter import AuthorId, Place
from nsync.log.floor import Floor
from nsync.log.forks import Mark, line_to
from nsync.log.segment import Dep, decode_header
from nsync.namespace.keys import scope_of
from nsync.namespace.ops import Grant
from nsync.store import schema
from nsync.store.log import SqlLog

_SEGMENT, _GUEST = schema.segment.c, schema.guest.c


class SqlHere:
    """What a voter asks of its log (log.voting.Here)."""

    def __init__(self, log: SqlLog, known: Optional[Floor] = None) -> None:
        """`known`: a floor whose digest was computed already."""
        self._log = log
        self._known = known
        self._lines = log.lines
        self._connection = log.connection

    def heads_before(self, ms: int) -> list[Dep]:
        """Of each log the last end of a changeset on its standing line that is applied here and stamped at or before `ms`."""
        authors = {branch.author for branch in self._lines.branches.values()}
        return [head for author in sorted(authors) if (head := self._head_before(author, ms)) is not None]

    def _head_before(self, author: bytes, ms: int) -> Optional[Dep]:
        for part in reversed(self._lines.line(author)):
            until = min(part.seq, self._lines.branches[part.branch].applied)
            ends = select(_SEGMENT.last, _SEGMENT.hash, _SEGMENT.header).where(
                _SEGMENT.branch == part.branch, _SEGMENT.commits, _SEGMENT.last <= until
            )
            for last, hash_, header in self._connection.execute(ends.order_by(_SEGMENT.first.desc())):
                if decode_header(header).stamp.ms <= ms:
                    return Dep(AuthorId(author), last, hash_)
        return None

    def latest(self, heads: Iterable[Dep]) -> int:
        """The latest stamp of `heads`, which are applied here, in ms."""
        query = select(_SEGMENT.header).where(_SEGMENT.hash.in_([head.hash for head in heads]))
        return max((decode_header(raw).stamp.ms for raw in self._connection.execute(query).scalars()), default=0)

    def is_right(self, heads: Iterable[Dep]) -> bool:
        """Whether the heads are ends of changesets applied on standing lines, hold their own past, and nothing void counts by them."""
        heads = list(heads)
        marks = [self._standing_end(head) for head in heads]
        if any(mark is None for mark in marks):
            return False
        below = {part.branch: part.seq for mark in marks if mark is not None for part in line_to(self._lines.branches_tree, mark)}
        return self._is_closed([mark for mark in marks if mark is not None], below) and not self._frees_something(heads, below)

    def _standing_end(self, head: Dep) -> Optional[Mark]:
        mark = self._lines.mark(head.author, Place(head.seq, head.hash))
        if mark is None or not self._lines.stands(mark):
            return None
        query = select(_SEGMENT.commits).where(_SEGMENT.branch == mark.branch, _SEGMENT.last == head.seq)
        return mark if self._connection.execute(query).scalar() else None

    def _is_closed(self, marks: Sequence[Mark], below: Mapping[int, int]) -> bool:
        """Whether all that they have seen of lines that stand lies below too."""
        for mark in marks:
            for branch, seq in self._lines.past(mark).items():
                standing = next((part.seq for part in self._lines.line(self._lines.branches[branch].author) if part.branch == branch), 0)
                if min(seq, standing) > below.get(branch, 0):
                    return False
        return True

    def _frees_something(self, heads: Sequence[Dep], below: Mapping[int, int]) -> bool:
        """Whether a guest's statement that a revocation made void, and no floor covers yet, would lie below while the revocation does not.

        Below a floor everything counts as seen by everybody: so a guest who proposes could give effect to what it said too late.
        """
        ends: dict[bytes, int] = {head.author: head.seq for head in heads}
        for author in {branch.author for branch in self._lines.branches.values()}:
            for given in self._lines.given(author):
                revoked = [mark for dot in given.revocations if (mark := self._lines.on_line(dot)) is not None]
                above = [self._lines.past(mark) for mark in revoked if mark.seq > below.get(mark.branch, 0)]
                if any(self._is_late(given.grant, self._log.authority.name(author), seen, ends) for seen in above):
                    return True
        return False

    def _is_late(self, grant: Grant, home: str, seen: Mapping[int, int], ends: Mapping[bytes, int]) -> bool:
        """Whether who had the grant said something in its scope, up to `ends`, that neither `seen` nor a floor holds."""
        instance = self._log.authority.charter.by_name(grant.to)
        before = self._lines.floors()[-1] if self._lines.floors() else {}
        for author in (life.author for life in instance.incarnations) if instance is not None else ():
            for part in self._lines.line(author):
                after, until = max(seen.get(part.branch, 0), before.get(author, 0)), min(ends.get(author, 0), part.seq)
                query = select(_GUEST.seq).where(_GUEST.branch == part.branch, _GUEST.home == home, _GUEST.seq > after, _GUEST.seq <= until)
                marks = [Mark(part.branch, seq) for seq in self._connection.execute(query).scalars()]
                if any(scope_of(key) == grant.scope for _, op in self._log.state.statements.ops(marks) for key in op.says):
                    return True
        return False

    def live(self, heads: Mapping[bytes, int]) -> bytes:
        """The digest of what is live below `heads` once they are a floor."""
        if self._known is not None:
            return self._known.live if dict(heads) == {head.author: head.seq for head in self._known.heads} else b""
        return self._log.live_of(heads)
