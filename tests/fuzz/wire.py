"""Bytes to fuzz with: noise, good bytes with small changes, and trees that are almost right, packed in ways that are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
from hypothesis import strategies as st

from nsync.namespace import fields
from tests.conformance import make
from tests.conformance.vocabulary import JSON_TEXT

OPS = [bytes.fromhex(row["bytes"]) for row in make.make_ops()]
SEGMENTS = [segment for segment in (make.first_of_cms(), *make.changeset())]
HEADERS = [segment.header_bytes for segment in SEGMENTS]
FRAMES = [segment.frame for segment in SEGMENTS]


class Raw(bytes):
    """Bytes that are packed as they are: forms that the library does not write."""


def nested(depth: int) -> Any:
    """That many arrays, one in the other."""
    return (nested(depth - 1),) if depth else None


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 9, 256, 65536, 1 << 32, 1 << 48, (1 << 48) + 1),
    *(fields.BYTES_MAX, fields.BYTES_MAX + 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(0.0, 1.0, -1.5, float("nan"), float("inf")),
    *("", "F", "D", "C", "a", "a\nb", "a\x7fb", "\u2028", "\u2029", "ü"),
    *("x" * length for length in (255, 256, 260, 261, 1024, 1025)),
    *(fields.PUBLIC, fields.SUSPENDED, "10.5072/X", JSON_TEXT, "{}", "[1,2]", '"\\u0000"', "1.0", "1e5", "-0", "[[]]", '{"b":1,"a":2}'),
    *(str(1 << 63), "1e999", "NaN", "[" * 32 + "]" * 32, "[" * 33 + "]" * 33, '"' + "x" * 59_998 + '"', '"' + "x" * 59_999 + '"'),
    *("BAD", "meta", "events", "closed", "state", "opendata_meta", "json.x"),
    *(b"", bytes(4), bytes(15), bytes(16), b"F", b"PUBLIC"),
    *((), (None,), ("a", "1"), (("a", "1"),), (("b", "1"), ("a", "1")), (("a", "1"), ("a", "1")), ("meta",), ("meta", "meta")),
    *(*map(nested, range(2, 10)), (None,) * 256, (None,) * 257),
    *({}, {"a": 1}, Raw(b"\x82\xa1a\x01\xa1a\x02"), msgpack.ExtType(1, b""), msgpack.ExtType(1, b"x"), msgpack.Timestamp(1)),
    *(Raw(b"\xc1"), Raw(b"\xc7\x00\x01"), Raw(b"\xa1\xff"), Raw(b"\xa3\xed\xa0\x80"), Raw(b"\xdc\xff\xff"), Raw(b"\xdd\xff\xff\xff\xff")),
]

_LEAVES = st.sampled_from(ODD) | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=40) | st.binary(max_size=40)
VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12)


def pack(value: Any, wide: Iterator[bool]) -> bytes:
    """`value` as msgpack; each value takes the longest form of its kind when the next of `wide` says so."""
    longest = next(wide, False)
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        head = b"\xdd" + len(value).to_bytes(4, "big") if longest else msgpack.Packer().pack_array_header(len(value))
        return head + b"".join(pack(item, wide) for item in value)
    if longest and type(value) is int and value < 1 << 63:
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if longest and type(value) in (str, bytes):
        raw = value if type(value) is bytes else value.encode()
        return (b"\xc6" if type(value) is bytes else b"\xdb") + len(raw).to_bytes(4, "big") + raw
    return msgpack.packb(value)


def places(value: Any) -> list[tuple[int, ...]]:
    """Where in the tree `value` something stands."""
    found: list[tuple[int, ...]] = [()]
    if isinstance(value, tuple):
        found += [(index, *below) for index, item in enumerate(value) for below in places(item)]
    return found


def put(value: Any, place: tuple[int, ...], other: Any) -> Any:
    if not place:
        return other
    return (*value[: place[0]], put(value[place[0]], place[1:], other), *value[place[0] + 1 :])


@st.composite
def almost(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A good tree with up to two parts replaced, doubled or dropped, and at times one value in a longer form."""
    tree = msgpack.unpackb(draw(st.sampled_from(good)), use_list=False)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from(places(tree)))
        how = draw(st.sampled_from(["replace", "replace", "replace", "double", "drop"]))
        if how == "replace" or not place:
            tree = put(tree, place, draw(VALUES))
        else:
            *above, last = place
            parent = tree
            for index in above:
                parent = parent[index]
            tree = put(tree, tuple(above), parent[:last] + (parent[last : last + 1] * 2 if how == "double" else ()) + parent[last + 1 :])
    longer = draw(st.none() | st.integers(0, 40))
    return pack(tree, iter([index == longer for index in range(41)]))


@st.composite
def mangled(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """Good bytes with one to three small changes."""
    raw = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        part = draw(st.binary(max_size=3))
        raw[at : at + draw(st.integers(0, 3))] = part
    return bytes(raw)


def hostile(good: list[bytes]) -> st.SearchStrategy[bytes]:
    """Whatever a peer may send where one of `good` belongs."""
    noise = st.binary(max_size=200)
    return st.one_of(almost(good), almost(good), mangled(good), VALUES.map(lambda value: pack(value, iter(()))), noise)


BOMBS = {
    f"{name} {count} deep": (head * count)[:65536]
    for count in (8, 200, 1100, 20_000)
    for name, head in {
        "arrays of 1": b"\x91",
        "arrays of 15": b"\x9f",
        "arrays of 256": b"\xdc\x01\x00",
        "arrays of 1000": b"\xdc\x03\xe8",
        "arrays of 4096": b"\xdc\x10\x00",
        "arrays of 65535": b"\xdc\xff\xff",
        "arrays of 4 thousand million": b"\xdd\xff\xff\xff\xff",
        "arrays of 15 that hold maps": b"\x9f\x81\xa0",
        "maps": b"\x81\xa0",
        "maps of 65535": b"\xde\xff\xff",
    }.items()
} | {
    "a byte string of 4 GB": b"\x91\xc6\xff\xff\xff\xff",
    "a text of 4 GB": b"\x91\xdb\xff\xff\xff\xff",
    "an extension of 4 GB": b"\x91\xc9\xff\xff\xff\xff\x01",
    "a frame of byte strings of 4 GB": b"\x93" + b"\xc6\xff\xff\xff\xff" * 10_000,
    "a frame of 4096 ops that are bombs": b"\x93\xc4\x00\xc4\x00\xdc\x10\x00" + b"\xdc\x10\x00" * 2000,
    "a statement of nothing but arrays": b"\x92\x01" + b"\x92\x92\x02\x90" * 5000,
    "JSON of nothing but arrays": msgpack.packb((1, ((7, "json.x", 2, "a", "b"), "[" * 60_000))),
    "JSON of empty arrays": msgpack.packb((1, ((7, "json.x", 2, "a", "b"), "[" + "[],[]," * 9_999 + "[]]"))),
    "JSON of one number": msgpack.packb((1, ((7, "json.x", 2, "a", "b"), "9" * 60_000))),
    "JSON of quotes": msgpack.packb((1, ((7, "json.x", 2, "a", "b"), '"' + "\\\\" * 29_000 + '"'))),
}
"""Inputs that cost a careless decoder much."""
