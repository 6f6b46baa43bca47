"""An instance without a database: it applies segments to a Reference, and signs changesets of its own.

For trying things out, for examples and for tests; the way of a changeset is the same as through the SQL store. Segments
are taken as they are: whoever feeds it strangers' bytes decodes and checks them first (log.admission.check_segment).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsync.authority.charter import Charter
from nsync.catalogue.reference import Reference
from nsync.catalogue.world import Node, node_of
from nsync.clock import next_stamp
from nsync.errors import ConfigError
from nsync.log.segment import EMPTY, NO_HASH, Dep, Segment, Sign, Tip, build_changeset
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
        self.state = Reference(charter)
        self.log: list[Segment] = []
        """Every segment applied here, in that order."""
        self._charter = charter
        self._sign = sign
        self._tip: Tip = EMPTY
        self._nodes: dict[bytes, Node] = {}

    def say(self, *statements: Statement) -> list[Segment]:
        """Publish `statements` as one changeset, an op each."""
        return self.publish([encode_op([statement]) for statement in statements])

    def publish(self, ops: Sequence[bytes]) -> list[Segment]:
        """Sign `ops` as one changeset that has seen everything applied here, and apply it."""
        segments = list(
            build_changeset(
                ops,
                federation=self._charter.federation,
                charter_version=self._charter.version,
                author=self.author,
                tip=self._tip,
                stamp=next_stamp(self.now_ms, [self._tip.stamp, *(node.header.stamp for node in self._nodes.values())]),
                deps=self._deps(),
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
        """Take in a segment if what it continues and names is here; tells whether it did."""
        header = segment.header
        named = [dep.hash for dep in header.deps] + ([header.prev] if header.prev != NO_HASH else [])
        if segment.hash in self._nodes or any(name not in self._nodes for name in named):
            return False
        self._nodes[segment.hash] = node_of(segment, self._nodes)
        self.state.apply(segment)
        self.log.append(segment)
        return True

    def _deps(self) -> list[Dep]:
        """The maximal ends of changesets that this author's log has not seen (R4.1)."""
        mine = self._nodes[self._tip.hash].past if self._tip.seq else frozenset()
        fresh = [n for n in self._nodes.values() if n.header.commit and n.header.author != self.author and n.hash not in mine]
        covered = {seen for node in fresh for seen in node.past}
        return [Dep(n.header.author, n.header.last, n.hash) for n in fresh if n.hash not in covered]
