"""Which segments are let into a log, and which may then be applied (R4.3, R4.4).

In two steps, since a segment may arrive before its deps: `admit` when it arrives (it continues its author's chain), `check_deps` when
everything that it names is applied here. What fails the first is not stored; what fails the second is stored, and
its author's log is not applied from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from nsync.authority.charter import AuthorId, Charter, Verify
from nsync.clock import Stamp
from nsync.errors import RejectedSegment
from nsync.log.segment import CHANGESET_SEGMENTS_MAX, Header, Segment, Tip, check_signature
from nsync.namespace.ops import decode_op


def admit(segment: Segment, tip: Tip, charter: Charter, verify: Verify) -> Tip:
    """The tip after `segment`, which must continue `tip`, the end of its author's log here. Raises RejectedSegment."""
    header = segment.header
    instance = charter.by_author(header.author)
    if header.federation != charter.federation:
        raise RejectedSegment(f"{segment}: it belongs to federation {header.federation.hex()}, this is {charter.federation.hex()}")
    if instance is None:
        raise RejectedSegment(f"{segment}: the charter names no such author; a new member or incarnation needs an amendment")
    check_signature(segment, instance.key, verify)
    whose = f"{segment} of {instance.name}"
    if header.charter_version != charter.version:
        raise RejectedSegment(f"{whose}: it was made under charter version {header.charter_version}, this instance has {charter.version}")
    if header.first != tip.seq + 1:
        raise RejectedSegment(f"{whose}: a gap: the log here ends at {tip.seq}, so {tip.seq + 1} must come next")
    if header.prev != tip.hash:
        raise RejectedSegment(f"{whose}: a fork: it does not continue the segment that ends at {tip.seq} here")
    if header.stamp <= tip.stamp:
        raise RejectedSegment(f"{whose}: its stamp {header.stamp} is not after its predecessor's {tip.stamp}")
    if tip.open_segments + 1 > CHANGESET_SEGMENTS_MAX:
        raise RejectedSegment(f"{whose}: the changeset has more than {CHANGESET_SEGMENTS_MAX} segments")
    for offset, op in enumerate(segment.ops):
        try:
            decode_op(op)
        except RejectedSegment as error:
            raise RejectedSegment(f"{whose}: op {header.first + offset}: {error}") from error
    return Tip(header.last, segment.hash, header.stamp, 0 if header.commit else tip.open_segments + 1)


def check_deps(header: Header, named_before: Mapping[AuthorId, int], stamps: Mapping[tuple[AuthorId, int, bytes], Optional[Stamp]]) -> None:
    """Raises RejectedSegment unless each dep is new to the author and older than the segment.

    `named_before`: what the author's log had seen before this segment. `stamps`: for each dep (author, seq, hash) the stamp of the
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
