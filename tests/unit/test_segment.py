"""Segments: header, root, signature, frame, and how a changeset is cut into them (R4.1, R4.2)."""

from __future__ import annotations

from typing import Any

import pytest

from nsync.auth.keys import SIGNATURE_BYTES, SigningKey, verify
from nsync.clock import STAMP_MAX, Stamp
from nsync.errors import RejectedSegment
from nsync.log.admission import admit
from nsync.log.segment import (
    CHANGESET_SEGMENTS_MAX,
    DEPS_MAX,
    EMPTY,
    FRAME_BYTES_MAX,
    OPS_BYTES_MAX,
    OPS_MAX,
    SEQ_MAX,
    Dep,
    Segment,
    build_changeset,
    check_signature,
    decode_frame,
    decode_header,
    header_hash,
    root_of,
)
from nsync.namespace import codec
from nsync.namespace.ops import OP_BYTES_MAX
from tests.conformance.make import NOW_MS, UNKNOWN_OP, sealed
from tests.support.federation import AUTHOR, CHARTER, KEYS

GOOD = sealed("atlas", [UNKNOWN_OP])
FIELDS = codec.decode(GOOD.header_bytes, "header")
DEP = (AUTHOR["cms"], 1, bytes(16))


def changeset(ops: list[bytes]) -> list[Segment]:
    return list(
        build_changeset(
            ops,
            federation=CHARTER.federation,
            charter_version=1,
            author=AUTHOR["atlas"],
            tip=EMPTY,
            stamp=Stamp(NOW_MS, 0),
            deps=[Dep(AUTHOR["cms"], 1, bytes(16))],
            sign=KEYS["atlas"].sign,
        )
    )


@pytest.mark.parametrize(
    ("field", "values", "text"),
    [
        (0, [0, 2, True, None, "1", "x" * 100_000], "format"),
        (1, [b"", bytes(15), bytes(17), "x" * 16, None], "id or hash"),
        (2, [0, -1, True, None, (1 << 32) + 1], "no charter version"),
        (3, [b"", bytes(17), None], "id or hash"),
        (4, [1, -1, None, False], "log group"),
        (5, [0, -1, SEQ_MAX + 1, None, True], "begins at no sequence number"),
        (6, [0, -1, OPS_MAX + 1, None], "announces no op or more than"),
        (7, [b"", None, bytes(32)], "id or hash"),
        (8, [None, (), (1,), (1, 2, 3), (-1, 0), (0, -1), (STAMP_MAX + 1, 0), (0, STAMP_MAX + 1), (True, 0), ("1", 0)], "no stamp"),
        (9, [None, 1, (1,), ((),), (DEP[:2],), ((*DEP, 1),), ((b"x", 1, bytes(16)),), ((DEP[0], 0, DEP[2]),)], "malformed deps"),
        (9, [((DEP[0], SEQ_MAX + 1, DEP[2]),), ((DEP[0], 1, b""),), ((DEP[0], True, DEP[2]),)], "malformed deps"),
        (9, [tuple((i.to_bytes(16, "big"), 1, bytes(16)) for i in range(DEPS_MAX + 1))], "malformed deps"),
        (9, [(DEP, DEP), ((DEP[0], 2, DEP[2]), DEP), ((b"\xff" * 16, 1, bytes(16)), (bytes(16), 1, bytes(16)))], "unsorted or named twice"),
        (10, [b"", bytes(15), None], "id or hash"),
        (11, [0, 1, None, "yes"], "no commit flag"),
    ],
)
def test_a_header_is_checked_field_by_field(field: int, values: list[Any], text: str) -> None:
    for value in values:
        raw = codec.encode((*FIELDS[:field], value, *FIELDS[field + 1 :]))
        with pytest.raises(RejectedSegment, match=text) as caught:
            decode_header(raw)
        assert len(str(caught.value)) < 200, "a peer's words are not repeated at length"


@pytest.mark.parametrize("parts", [(), FIELDS[:-1], (*FIELDS, 0), None, 1, "x"])
def test_a_header_has_twelve_fields(parts: Any) -> None:
    with pytest.raises(RejectedSegment, match="another number of fields"):
        decode_header(codec.encode(parts))


def test_the_most_deps_fit_a_frame() -> None:
    deps = tuple(Dep(i.to_bytes(16, "big"), SEQ_MAX, bytes(16)) for i in range(DEPS_MAX))  # type: ignore[arg-type]
    ops = [b"x" * OP_BYTES_MAX] * (OPS_BYTES_MAX // OP_BYTES_MAX)
    segment = sealed("atlas", ops, deps=deps)
    assert decode_frame(segment.frame) == segment
    small = sealed("atlas", [b"x" * (OPS_BYTES_MAX // OPS_MAX)] * OPS_MAX, deps=deps)
    assert decode_frame(small.frame).header.n == OPS_MAX


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (bytes(FRAME_BYTES_MAX + 1), f"has {FRAME_BYTES_MAX + 1} bytes"),
        (codec.encode(None), "is not"),
        (codec.encode((GOOD.header_bytes, GOOD.signature)), "is not"),
        (codec.encode(("x", GOOD.signature, GOOD.ops)), "is not"),
        (codec.encode((GOOD.header_bytes, GOOD.signature, b"x")), "is not"),
        (codec.encode((GOOD.header_bytes, None, GOOD.ops)), "no signature"),
        (codec.encode((GOOD.header_bytes, bytes(SIGNATURE_BYTES + 1), GOOD.ops)), "no signature"),
        (codec.encode((GOOD.header_bytes, GOOD.signature, (1,))), "no byte string"),
        (codec.encode((GOOD.header_bytes, GOOD.signature, (bytes(OP_BYTES_MAX + 1),))), "no byte string"),
        (
            codec.encode((GOOD.header_bytes, GOOD.signature, (bytes(OP_BYTES_MAX),) * 16 + (b"x",))),
            f"more than {OPS_BYTES_MAX} bytes of ops",
        ),
        (codec.encode((GOOD.header_bytes, GOOD.signature, ())), "not those that its header signs"),
        (codec.encode((GOOD.header_bytes, GOOD.signature, GOOD.ops * 2)), "not those that its header signs"),
        (codec.encode((GOOD.header_bytes, GOOD.signature, (b"other",))), "not those that its header signs"),
    ],
)
def test_a_frame_is_checked_part_by_part(frame: bytes, text: str) -> None:
    with pytest.raises(RejectedSegment, match=text):
        decode_frame(frame)


def test_the_root_depends_on_every_op_and_their_order() -> None:
    roots = {root_of(ops) for ops in ([], [b""], [b"a"], [b"b"], [b"a", b"b"], [b"b", b"a"], [b"ab"], [b"a", b"b", b""])}
    assert len(roots) == 8


def test_a_signature_is_its_authors_over_the_header() -> None:
    check_signature(GOOD, KEYS["atlas"].public, verify)
    spoilt = GOOD.signature[:-1] + bytes([GOOD.signature[-1] ^ 1])
    other_purpose = GOOD._replace(signature=KEYS["atlas"].sign("request", GOOD.header_bytes))
    for segment, key in ((GOOD, KEYS["cms"]), (GOOD._replace(signature=spoilt), KEYS["atlas"]), (other_purpose, KEYS["atlas"])):
        with pytest.raises(RejectedSegment, match=f"segment {AUTHOR['atlas'].hex()[:12]} 1-1: the signature is not its author's"):
            check_signature(segment, key.public, verify)


@pytest.mark.parametrize(
    ("ops", "sizes"),
    [
        ([b"x"], [1]),
        ([b"x"] * OPS_MAX, [OPS_MAX]),
        ([b"x"] * (OPS_MAX + 1), [OPS_MAX, 1]),
        ([b"x" * OP_BYTES_MAX] * 16, [16]),
        ([b"x" * OP_BYTES_MAX] * 17 + [b"x"], [16, 2]),
        ([b"x" * OP_BYTES_MAX] * 15 + [b"x", b"y" * OP_BYTES_MAX], [16, 1]),
    ],
)
def test_a_changeset_is_cut_at_the_limits(ops: list[bytes], sizes: list[int]) -> None:
    segments = changeset(ops)
    assert [s.header.n for s in segments] == sizes
    assert [s.header.commit for s in segments] == [False] * (len(sizes) - 1) + [True]
    assert [len(s.header.deps) for s in segments] == [1] + [0] * (len(sizes) - 1)
    assert [op for s in segments for op in s.ops] == ops
    tip = EMPTY
    for segment in segments:
        assert decode_frame(segment.frame) == segment and len(segment.frame) <= FRAME_BYTES_MAX
        assert segment.header.prev == tip.hash and segment.hash == header_hash(segment.header_bytes)
        tip = admit(segment, tip)


@pytest.mark.parametrize("ops", [[b"x" * OP_BYTES_MAX] * (16 * CHANGESET_SEGMENTS_MAX + 1)])
def test_a_changeset_of_more_segments_is_a_bug_of_the_callers(ops: list[bytes]) -> None:
    with pytest.raises(AssertionError):
        changeset(ops)


def test_a_changeset_at_the_greatest_stamp_goes_on() -> None:
    ops = [b"x" * OP_BYTES_MAX] * 33
    made = build_changeset(
        ops,
        federation=CHARTER.federation,
        charter_version=1,
        author=AUTHOR["atlas"],
        tip=EMPTY,
        stamp=Stamp(NOW_MS, STAMP_MAX),
        deps=[],
        sign=SigningKey(bytes(32)).sign,
    )
    stamps = [decode_frame(segment.frame).header.stamp for segment in made]
    assert stamps == sorted(set(stamps)) and len(stamps) == 3
