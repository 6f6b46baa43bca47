"""An instance without a database: it applies segments to a Reference, and signs changesets of its own.

For trying things out, for examples and for tests; the way of a changeset is the same as through the SQL store. Segments
are taken as they are: whoever feeds it strangers' bytes decodes and checks them first (log.admission.check_segment).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsync.authority.charter import Charter
from nsync.authority.effective import Authority
from nsync.catalogue.reference import Reference
from nsync.clock import next_stamp
from nsync.errors import ConfigError
from nsync.log.admission import choose_deps
from nsync.log.segment import EMPTY, Dep, Segment, Sign, Tip, build_changeset
from nsync.namespace.ops import Statement, encode_op


class Writer:
    """One instance of a federation, in memory. Its clock is `now_ms`, moved by whoever holds it."""

    def __init__(self, charter: Charter, name: str, sign: Sign, now_ms: int = 0) -> None:
        instance = charter.by_name(name)
        if instance is None:
            raise ConfigError(f"the charter names no instance {name!r}")
        self.name = name
        self.author = instance.author
        self.now_ms = now_ms
        self.state = Reference(Authority(charter))
        self.log: list[Segment] = []
        """Every segment applied here, in that order."""
        self._charter = charter
        self._sign = sign
        self._tip: Tip = EMPTY
        self._ends: dict[bytes, Segment] = {}

    def say(self, *statements: Statement) -> list[Segment]:
        """Publish `statements` as one changeset, an op each."""
        return self.publish([encode_op([statement]) for statement in statements])

    def publish(self, ops: Sequence[bytes]) -> list[Segment]:
        """Sign `ops` as one changeset that has seen everything applied here, and apply it."""
        heads = {author: Dep(s.header.author, s.header.last, s.hash) for author, s in self._ends.items()}
        segments = list(
            build_changeset(
                ops,
                federation=self._charter.federation,
                charter_version=self._charter.version,
                author=self.author,
                tip=self._tip,
                stamp=next_stamp(self.now_ms, [self._tip.stamp, *(s.header.stamp for s in self._ends.values())]),
                deps=choose_deps(self.author, heads, self.state.pasts.at, self._tip.seq),
                sign=self._sign,
            )
        )
        last = segments[-1]
        self._tip = Tip(last.header.last, last.hash, last.header.stamp, 0)
        self.hear(segments)
        return segments

    def hear(self, segments: Iterable[Segment]) -> None:
        """Take in those of `segments` that can be applied, in this order."""
        for segment in list(segments):
            self.apply(segment)

    def apply(self, segment: Segment) -> bool:
        """Take in a segment if it comes next and its deps are here; tells whether it did."""
        header, heads = segment.header, self.state.heads
        if header.first != heads.get(header.author, 0) + 1 or any(heads.get(dep.author, 0) < dep.seq for dep in header.deps):
            return False
        self.state.apply(segment)
        self.log.append(segment)
        if header.commit:
            self._ends[header.author] = segment
        return True
