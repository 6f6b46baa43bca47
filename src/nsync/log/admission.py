"""Which segments are let into a log, and which may then be applied (R4.3, R4.4).

In three steps: `check_segment` when it arrives, `admit` when it is stored (it continues its author's chain), and, since a segment may
arrive before its deps, `check_deps` when everything that it names is applied here. What fails the first two is not stored;
what fails the last is stored, and its author's log is not applied from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, Optional

from nsync.authority.charter import Charter, Verify
from nsync.clock import Stamp
from nsync.crdt import Dot
from nsync.errors import RejectedSegment
from nsync.log.segment import CHANGESET_SEGMENTS_MAX, Dep, Header, Segment, Tip, check_signature
from nsync.namespace.ops import decode_op


def check_segment(segment: Segment, charter: Charter, verify: Verify) -> None:
    """Everything that can be told without the log: federation, author, signature, ops. Raises RejectedSegment.

    The dear part of admission, and one that needs no database: it is done before the transaction begins.
    """
    header = segment.header
    if header.federation != charter.federation:
        raise RejectedSegment(f"{segment}: it belongs to federation {header.federation.hex()}, this is {charter.federation.hex()}")
    instance = charter.by_author(header.author)
    if instance is None:
        raise RejectedSegment(f"{segment}: the charter names no such author; a new member or incarnation needs an amendment")
    check_signature(segment, instance.key, verify)
    if header.charter_version != charter.version:
        raise RejectedSegment(
            f"{segment} of {instance.name}: made under charter version {header.charter_version}, this instance has {charter.version}"
        )
    for offset, op in enumerate(segment.ops):
        try:
            decode_op(op)
        except RejectedSegment as error:
            raise RejectedSegment(f"{segment} of {instance.name}: op {header.first + offset}: {error}") from error


def admit(segment: Segment, tip: Tip) -> Tip:
    """The tip after `segment`, which must continue `tip`, the end of its author's log here. Raises RejectedSegment (R4.3)."""
    header = segment.header
    if header.first <= tip.seq:
        raise RejectedSegment(f"{segment}: a fork: the log here has another segment at {header.first}")
    if header.first != tip.seq + 1:
        raise RejectedSegment(f"{segment}: a gap: the log here ends at {tip.seq}, so {tip.seq + 1} must come next")
    if header.prev != tip.hash:
        raise RejectedSegment(f"{segment}: a fork: it does not continue the segment that ends at {tip.seq} here")
    if header.stamp <= tip.stamp:
        raise RejectedSegment(f"{segment}: its stamp {header.stamp} is not after its predecessor's {tip.stamp}")
    if tip.open_segments + 1 > CHANGESET_SEGMENTS_MAX:
        raise RejectedSegment(f"{segment}: the changeset has more than {CHANGESET_SEGMENTS_MAX} segments")
    return Tip(header.last, segment.hash, header.stamp, 0 if header.commit else tip.open_segments + 1)


def check_deps(header: Header, named_before: Mapping[bytes, int], stamps: Mapping[Dep, Optional[Stamp]]) -> None:
    """Raises RejectedSegment unless each dep is new to the author and older than the segment.

    `named_before`: what the author's log had seen before this segment. `stamps`: for each dep the stamp of the
    commit-flagged segment that it names, or None when the log here has another one there.
    """
    for dep in header.deps:
        stamp = stamps[dep]
        where = f"segment {header.author.hex()[:12]} {header.first}-{header.last}: its dep {dep.author.hex()[:12]} {dep.seq}"
        if dep.author == header.author:
            raise RejectedSegment(f"{where} is its own log")
        if stamp is None:
            raise RejectedSegment(f"{where} is not the end of a changeset that this instance has")
        if dep.seq <= named_before.get(dep.author, 0):
            raise RejectedSegment(f"{where} was in its author's past already")
        if stamp >= header.stamp:
            raise RejectedSegment(f"{where} is stamped {stamp}, not before the segment's {header.stamp}")


def choose_deps(author: bytes, heads: Mapping[bytes, Dep], at: Callable[[Dot], Mapping[bytes, int]], tip: int) -> list[Dep]:
    """The deps of the next segment of `author`, whose log ends at `tip`: the maximal heads that it had not named before (R4.1).

    `heads`: the last applied commit-flagged segment of each author; `at`: the past of a dot.
    """
    before = at(Dot(author, tip))
    fresh = [dep for dep in heads.values() if dep.author != author and dep.seq > before.get(dep.author, 0)]
    covered = [at(Dot(dep.author, dep.seq)) for dep in fresh]
    return [dep for dep in fresh if all(seen.get(dep.author, 0) < dep.seq for seen in covered)]
