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
from nsync.errors import RejectedSegment
from nsync.log.segment import CHANGESET_SEGMENTS_MAX, GONE, Dep, Header, Segment, Tip, check_signature
from nsync.namespace.ops import wire_op


def check_segment(segment: Segment, charter: Charter, verify: Verify) -> None:
    """Everything that can be told without the log: federation, author, signature, ops. Raises RejectedSegment.

    The dear part of admission, and one that needs no database: it is done before the transaction begins.
    """
    header = segment.header
    if header.federation != charter.federation:
        raise RejectedSegment(f"{segment}: it belongs to federation {header.federation.hex()}, this is {charter.federation.hex()}")
    instance, life = charter.by_author(header.author), charter.life(header.author)
    if instance is None or life is None:
        raise RejectedSegment(f"{segment}: the charter names no such author; a new member or incarnation needs an amendment")
    check_signature(segment, life.key, verify)
    if header.charter_version > charter.version:
        raise RejectedSegment(
            f"{segment} of {instance.name}: made under charter version {header.charter_version}, this instance has {charter.version}; "
            "ask a peer's operator for the newer charter"
        )
    for offset, op in enumerate(segment.ops):
        try:
            if op[:1] != GONE:
                wire_op(op)
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


def check_deps(header: Header, stamps: Mapping[Dep, Optional[Stamp]], seen: Callable[[Dep], bool]) -> None:
    """Raises RejectedSegment unless each dep is new to the author and older than the segment.

    `stamps`: for each dep the stamp of the commit-flagged segment that it names, or None when the log here has another one there.
    `seen`: whether the author's log had a dep in its past before this segment.
    """
    for dep in header.deps:
        stamp = stamps[dep]
        where = f"segment {header.author.hex()[:12]} {header.first}-{header.last}: its dep {dep.author.hex()[:12]} {dep.seq}"
        if dep.author == header.author:
            raise RejectedSegment(f"{where} is its own log")
        if stamp is None:
            raise RejectedSegment(f"{where} is not the end of a changeset that this instance has")
        if seen(dep):
            raise RejectedSegment(f"{where} was in its author's past already")
        if stamp >= header.stamp:
            raise RejectedSegment(f"{where} is stamped {stamp}, not before the segment's {header.stamp}")
