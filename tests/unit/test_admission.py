"""Which segments are let into a log, and which deps an honest author names (R4.3, R4.4)."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from nsync.auth.keys import SigningKey, verify
from nsync.clock import Stamp
from nsync.errors import RejectedSegment
from nsync.log.admission import admit, check_deps, check_segment
from nsync.log.segment import CHANGESET_SEGMENTS_MAX, EMPTY, Dep, Segment, Tip
from nsync.namespace import codec
from nsync.namespace.keys import Did
from nsync.namespace.ops import Retract, encode_op
from tests.conformance.make import NOW_MS, UNKNOWN_OP, sealed
from tests.support.federation import AUTHOR, CHARTER, KEYS

ATLAS, CMS = AUTHOR["atlas"], AUTHOR["cms"]
NAME = f"segment {ATLAS.hex()[:12]} "

OPS = [encode_op([Retract(Did("atlas", "x"))]), UNKNOWN_OP]
STRANGER = SigningKey(b"\x55" * 32)


def after(**changes: Any) -> Segment:
    """A segment that continues TIP, or nearly."""
    return sealed("atlas", OPS, **{"first": 8, "prev": b"h" * 16, "stamp": Stamp(NOW_MS, 5), **changes})


TIP = Tip(7, b"h" * 16, Stamp(NOW_MS, 4), 3)


def test_a_segment_that_continues_the_log_is_its_new_end() -> None:
    for commit, segments in ((True, 0), (False, 4)):
        segment = after(commit=commit)
        assert admit(segment, TIP) == Tip(9, segment.hash, Stamp(NOW_MS, 5), segments)
    first = sealed("atlas", OPS)
    assert admit(first, EMPTY) == Tip(2, first.hash, Stamp(NOW_MS, 0), 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"first": 9}, NAME + "9-10: a gap: the log here ends at 7, so 8 must come next"),
        ({"first": 100}, NAME + "100-101: a gap"),
        ({"first": 7}, NAME + "7-8: a fork: the log here has another segment at 7"),
        ({"first": 1}, NAME + "1-2: a fork: the log here has another segment at 1"),
        ({"prev": bytes(16)}, NAME + "8-9: a fork: it does not continue the segment that ends at 7 here"),
        ({"stamp": Stamp(NOW_MS, 4)}, NAME + "8-9: its stamp .* is not after its predecessor's"),
        ({"stamp": Stamp(NOW_MS - 1, 99)}, NAME + "8-9: its stamp .* is not after its predecessor's"),
    ],
)
def test_what_does_not_continue_the_log_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RejectedSegment, match=text):
        admit(after(**changes), TIP)


@pytest.mark.parametrize("commit", [True, False])
def test_a_changeset_ends_within_its_limit(commit: bool) -> None:
    assert admit(after(commit=commit), TIP._replace(open_segments=CHANGESET_SEGMENTS_MAX - 1))
    with pytest.raises(RejectedSegment, match=f"more than {CHANGESET_SEGMENTS_MAX} segments"):
        admit(after(commit=commit), TIP._replace(open_segments=CHANGESET_SEGMENTS_MAX))


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        (after(federation=bytes(16)), NAME + "8-9: it belongs to federation 0{32}, this is "),
        (after(author=bytes(16)), "segment 000000000000 8-9: the charter names no such author"),
        (sealed("atlas", OPS, key=STRANGER), NAME + "1-2: the signature is not its author's"),
        (sealed("atlas", OPS, key=KEYS["cms"]), NAME + "1-2: the signature is not its author's"),
        (after(author=CMS), f"segment {CMS.hex()[:12]} 8-9: the signature is not its author's"),
        (after(charter_version=2), NAME + "8-9 of atlas: made under charter version 2, this instance has 1"),
        (sealed("atlas", [OPS[0], b"\xc4"], first=8), NAME + "8-9 of atlas: op 9: op is not canonical msgpack"),
        (sealed("atlas", [codec.encode((1,)), OPS[0]], first=8), NAME + "8-9 of atlas: op 8: an op has 0 statements"),
    ],
)
def test_what_can_be_told_without_the_log_is_told_first(segment: Segment, text: str) -> None:
    check_segment(after(), CHARTER, verify)
    with pytest.raises(RejectedSegment, match=text):
        check_segment(segment, CHARTER, verify)


def dep(author: bytes = CMS, seq: int = 5) -> Dep:
    return Dep(author, seq, b"d" * 16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("named", "stamp", "seen", "text"),
    [
        (dep(ATLAS, 3), Stamp(1, 0), False, "is its own log"),
        (dep(), None, False, "is not the end of a changeset that this instance has"),
        (dep(), Stamp(1, 0), True, "was in its author's past already"),
        (dep(), Stamp(NOW_MS, 5), False, "is stamped .*, not before the segment's"),
        (dep(), Stamp(NOW_MS + 1, 0), False, "is stamped .*, not before the segment's"),
        (dep(), Stamp(NOW_MS, 4), False, None),
    ],
)
def test_deps_that_no_honest_author_names(named: Dep, stamp: Optional[Stamp], seen: bool, text: Optional[str]) -> None:
    other = dep(AUTHOR["belle2"], 9)
    header = after(deps=(named, other)).header

    def check() -> None:
        check_deps(header, {named: stamp, other: Stamp(1, 0)}, lambda one: seen and one == named)

    if text is None:
        check()
        return
    with pytest.raises(RejectedSegment, match=f"{NAME}8-9: its dep {named.author.hex()[:12]} {named.seq} {text}"):
        check()
