"""Repair below a floor: its messages within their limits, the numbers of blocks and ops, and the course with one peer."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from typing import Any, Callable

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nsync.errors import ProtocolError
from nsync.log.compaction import BLOCK_OPS
from nsync.log.floor import Floor
from nsync.log.repair import BITMAP_BYTES, Damage, Numbered
from nsync.log.segment import SEQ_MAX, Dep
from nsync.namespace.ops import OP_BYTES_MAX
from nsync.transport import repair
from nsync.transport.repair import Ask, Places

FLOOR = Floor(3, 1, tuple(Dep(bytes([n]) * 16, seq, bytes(16)) for n, seq in ((1, 5000), (2, 4096), (3, 1))), bytes(16))  # type: ignore[arg-type]
SETS = st.sets(st.integers(0, SEQ_MAX), min_size=1, max_size=50).map(lambda numbers: tuple(sorted(numbers)))


@given(st.integers(0, SEQ_MAX), SETS)
def test_places_come_back(floor: int, numbers: tuple[int, ...]) -> None:
    assert repair.decode_places(repair.encode_places(Places(floor, numbers))) == (floor, numbers)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_ops_come_back(ops: list[bytes]) -> None:
    assert repair.decode_ops(repair.encode_ops(ops), len(ops)) == ops


def test_digests_and_bitmaps_come_back() -> None:
    rng = random.Random(1)
    digests, bitmaps = [rng.randbytes(16) for _ in range(9)], [rng.randbytes(BITMAP_BYTES) for _ in range(9)]
    assert repair.decode_digests(repair.encode_digests(digests), 9) == [digest[:8] for digest in digests]
    assert repair.decode_bitmaps(repair.encode_bitmaps(bitmaps), 9) == bitmaps


def test_no_answer_is_one() -> None:
    assert repair.decode_digests(b"", 1) is repair.decode_bitmaps(b"", 1) is repair.decode_ops(b"", 1) is None


def _zstd(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


@pytest.mark.parametrize(
    "decode",
    [
        lambda: repair.decode_first(msgpack.packb([1])),
        lambda: repair.decode_first(msgpack.packb([1, -1])),
        lambda: repair.decode_first(b"\x92\xcc\x01\x01"),
        lambda: repair.decode_places(msgpack.packb([1, []])),
        lambda: repair.decode_places(msgpack.packb([1, [4, 0]])),
        lambda: repair.decode_places(msgpack.packb([1, [4, -1]])),
        lambda: repair.decode_places(msgpack.packb([1, [SEQ_MAX, 1]])),
        lambda: repair.decode_places(msgpack.packb([1, [1] * (repair.OPS_MAX + 1)])),
        lambda: repair.decode_places(msgpack.packb([1, [1 << 60] * 8193])),
        lambda: repair.decode_places(msgpack.packb([True, [1]])),
        lambda: repair.decode_places(bytes(repair.QUESTION_BYTES_MAX + 1)),
        lambda: repair.decode_digests(_zstd(bytes(24)), 2),
        lambda: repair.decode_digests(_zstd(bytes(8)), 2),
        lambda: repair.decode_digests(_zstd(bytes(16))[:-1], 2),
        lambda: repair.decode_digests(_zstd(bytes(16)) + b"more", 2),
        lambda: repair.decode_digests(_zstd(bytes(16)) + _zstd(b""), 2),
        lambda: repair.decode_bitmaps(b"no zstd", 1),
        lambda: repair.decode_bitmaps(_zstd(bytes(100 << 20)), 8192),
        lambda: repair.decode_bitmaps(zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20)), 8192),
        lambda: repair.decode_ops(_zstd(b""), 1),
        lambda: repair.decode_ops(_zstd(b"\0\0\0\1a\0\0\0\1b"), 1),
        lambda: repair.decode_ops(_zstd(b"\0\0\0\2a"), 1),
        lambda: repair.decode_ops(_zstd(b"\xff\xff\xff\xff"), 1),
        lambda: repair.decode_ops(_zstd((OP_BYTES_MAX + 1).to_bytes(4, "big") + bytes(OP_BYTES_MAX + 1)), 1),
    ],
)
def test_what_breaks_a_rule_or_a_limit_is_refused(decode: Callable[[], Any]) -> None:
    with pytest.raises(ProtocolError):
        decode()


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_refused(data: bytes) -> None:
    for decode in (repair.decode_digests, repair.decode_bitmaps, repair.decode_ops):
        with contextlib.suppress(ProtocolError):
            decode(data, 2)
    for read in (repair.decode_first, repair.decode_places):
        with contextlib.suppress(ProtocolError):
            read(data)


def test_blocks_and_ops_are_numbered_through() -> None:
    numbered = Numbered(FLOOR)
    one, two, three = (head.author for head in FLOOR.heads)
    assert numbered.blocks == 4
    assert [tuple(numbered.block(n)) for n in range(4)] == [(one, 0, 4096), (one, 4096, 5000), (two, 0, 4096), (three, 0, 1)]
    assert numbered.op(4999) == (one, 5000) and numbered.op(2 * BLOCK_OPS) == (two, 1) and numbered.op(3 * BLOCK_OPS) == (three, 1)
    for number in (5000, 3 * BLOCK_OPS + 1, 4 * BLOCK_OPS, -1):
        with pytest.raises(ProtocolError):
            numbered.op(number)


def _bits(*places: int) -> bytes:
    return sum(1 << place for place in places).to_bytes(BITMAP_BYTES, "little")


def test_the_course_asks_for_what_is_live_there_and_not_here() -> None:
    course = repair.repair(Damage(3, (b"a" * 16, b"b" * 16, b"c" * 16)))
    assert course.send(None) == Ask("blocks", msgpack.packb([3, 0]), repair.BLOCKS_BYTES_MAX)
    asked = course.send(repair.encode_digests([b"a" * 16, b"x" * 16, b"y" * 16]))
    assert asked == Ask("bitmaps", msgpack.packb([3, [1, 1]]), repair.BITMAPS_BYTES_MAX)
    assert course.send(repair.encode_bitmaps([_bits(0, 7, 4095), _bits(1)])) == ((1, 2),), "what is here"
    asked = course.send([_bits(1, 7), _bits(1, 2)])
    assert asked == Ask("ops", msgpack.packb([3, [4096, 4095]]), repair.ANSWER_BYTES_MAX)
    assert course.send(repair.encode_ops([b"one"])) == ((4096,), [b"one"])
    asked = course.send(1)
    assert asked == Ask("ops", msgpack.packb([3, [8191]]), repair.ANSWER_BYTES_MAX), "what did not fit is asked for again"
    assert course.send(repair.encode_ops([b"two"])) == ((8191,), [b"two"])
    with pytest.raises(StopIteration) as end:
        course.send(1)
    assert end.value.value == ((1, 2), 2)


def test_many_blocks_take_several_questions() -> None:
    many = repair.BITMAPS_MAX + 3
    course = repair.repair(Damage(1, (bytes(16),) * many))
    course.send(None)
    first = course.send(repair.encode_digests([b"x" * 16] * many))
    assert len(repair.decode_places(first.body).numbers) == repair.BITMAPS_MAX  # type: ignore[union-attr]
    course.send(repair.encode_bitmaps([bytes(BITMAP_BYTES)] * repair.BITMAPS_MAX))
    second = course.send([bytes(BITMAP_BYTES)] * repair.BITMAPS_MAX)
    assert repair.decode_places(second.body).numbers == tuple(range(repair.BITMAPS_MAX, many))  # type: ignore[union-attr]


def test_a_part_is_asked_for_before_the_rest_is_known() -> None:
    """All of two million ops: no more of their numbers are held than are asked for at once."""
    many = 512
    course = repair.repair(Damage(1, (bytes(16),) * many))
    course.send(None)
    course.send(repair.encode_digests([b"x" * 16] * many))
    course.send(repair.encode_bitmaps([b"\xff" * BITMAP_BYTES] * many))
    here = [bytes(BITMAP_BYTES)] * many
    tracemalloc.start()
    asked = course.send(here)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert repair.decode_places(asked.body).numbers == tuple(range(repair.OPS_MAX))  # type: ignore[union-attr]
    assert peak < 16 << 20
