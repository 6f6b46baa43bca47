"""Canonical msgpack: one form of each value, and nothing but RejectedSegment for all other bytes (R4.2).

Run a second time without msgpack's C extension, by test_fuzz.py.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsync.errors import RejectedSegment
from nsync.namespace import codec

PURE = bool(os.environ.get("MSGPACK_PUREPYTHON"))

NOT_CANONICAL = {
    "1 as uint8": "cc01",
    "1 as uint16": "cd0001",
    "1 as uint32": "ce00000001",
    "1 as uint64": "cf0000000000000001",
    "1 as int8": "d001",
    "200 as int16": "d100c8",
    "-1 as int8": "d0ff",
    "-1 as int64": "d3ffffffffffffffff",
    "-128 as int16": "d1ff80",
    "256 as uint32": "ce00000100",
    "str8 of one": "d90161",
    "str16 of one": "da000161",
    "str32 of one": "db0000000161",
    "bin16 of one": "c5000161",
    "bin32 of one": "c60000000161",
    "array16 of one": "dc0001c0",
    "array32 of one": "dd00000001c0",
    "a longer form inside": "92c0cc01",
}
NO_VALUE = {
    "nothing": "",
    "empty map": "80",
    "map": "81a16101",
    "map16": "de0000",
    "map32": "df00000000",
    "map with a key twice": "82a16101a16102",
    "map inside": "9180",
    "float32": "ca3f800000",
    "float64": "cb3ff0000000000000",
    "not a number": "cb7ff8000000000000",
    "fixext1": "d40100",
    "fixext16": "d801" + "00" * 16,
    "ext8": "c7010100",
    "ext16": "c800010100",
    "ext32": "c9000000010100",
    "timestamp": "d6ff00000000",
    "reserved": "c1",
    "bytes after the end": "c0c0",
    "int cut off": "cd00",
    "str cut off": "a261",
    "bin cut off": "c40561",
    "array cut off": "92c0",
    "str of 4 GB announced": "dbffffffff61",
    "bin of 4 GB announced": "c6ffffffff61",
    "array of 4 thousand million announced": "ddffffffffc0",
    "not UTF-8": "a1ff",
    "UTF-8 of a surrogate": "a3eda080",
    "overlong UTF-8": "a2c080",
    "9 arrays deep": "91" * 9 + "c0",
    "100 000 arrays deep": "91" * 100_000 + "c0",
}


@pytest.mark.parametrize("raw", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_a_longer_form_is_refused(raw: str) -> None:
    with pytest.raises(RejectedSegment, match=r"^key is msgpack, but not in its canonical form$"):
        codec.decode(bytes.fromhex(raw), "key")


@pytest.mark.parametrize("raw", NO_VALUE.values(), ids=NO_VALUE.keys())
def test_what_is_no_value_is_refused(raw: str) -> None:
    with pytest.raises(RejectedSegment, match=r"^key is not canonical msgpack: .{1,120}$"):
        codec.decode(bytes.fromhex(raw), "key")


def nested(depth: int) -> Any:
    return (nested(depth - 1),) if depth else None


@pytest.mark.parametrize("value", [1.0, {}, [1], {1}, bytearray(b"x"), object(), Ellipsis, (1, (1.0,)), nested(codec.DEPTH_MAX + 1)])
def test_what_has_no_canonical_form_is_a_bug_of_the_callers(value: object) -> None:
    with pytest.raises(TypeError):
        codec.encode(value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        127,
        128,
        -1,
        -32,
        -33,
        255,
        256,
        1 << 16,
        1 << 32,
        -(1 << 63),
        (1 << 64) - 1,
        "",
        "x" * 32,
        b"",
        b"x" * 256,
        nested(codec.DEPTH_MAX - 1),
    ],
)
def test_edges_come_back(value: object) -> None:
    assert codec.decode(codec.encode((value,)), "key") == (value,)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=40) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


def _depth(value: object) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, tuple) else 0


@given(VALUES)
def test_every_value_comes_back(value: Any) -> None:
    if _depth(value) > codec.DEPTH_MAX:
        with pytest.raises(TypeError):
            codec.encode(value)
    else:
        found = codec.decode(codec.encode(value), "key")
        assert found == value and type(found) is type(value)
