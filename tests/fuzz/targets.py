"""What must hold of every decoder, whatever bytes it is given: it refuses them by RejectedSegment, or they are the bytes of what it
found; it accepts what the protocol says (`oracle`), and nothing else; and it takes little memory.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from nsync.errors import RejectedSegment
from nsync.log.segment import FRAME_BYTES_MAX, OPS_MAX, decode_frame, decode_header, encode_header
from nsync.namespace import codec
from nsync.namespace.keys import anchor_of, fact_of, from_key_bytes, from_wire, key_bytes, key_of, scope_of
from nsync.namespace.ops import STATEMENTS_KIND, decode_op, wire_op
from tests.conformance.vocabulary import encoded
from tests.fuzz import oracle, wire


class Target(NamedTuple):
    good: list[bytes]
    check: Callable[[bytes], None]
    decode: Callable[[bytes], Any]


def tried(decode: Callable[[bytes], Any], raw: bytes) -> Optional[Any]:
    """What `decode` makes of `raw`, in a tuple; None if it refuses it in a text that fits a log."""
    try:
        return (decode(raw),)
    except RejectedSegment as error:
        assert 0 < len(str(error)) < 300 and "\n" not in str(error), error
        return None


def check_value(raw: bytes) -> None:
    found = tried(lambda raw: codec.decode(raw, "value"), raw)
    try:
        expected = oracle.value_of(raw)
    except oracle.NotCanonical:
        assert found is None, found
        return
    assert found is not None and repr(found[0]) == repr(expected)  # as texts: 1 is equal to True
    assert codec.encode(found[0]) == raw


def check_op(raw: bytes) -> None:
    found = tried(decode_op, raw)
    assert (found is not None) == oracle.is_op(raw), found
    if found is None:
        return
    op = wire_op(raw)
    assert codec.encode(op) == raw
    (said,) = found
    assert not said or encoded(said) == raw
    for one, at in zip(said, op[1:]) if op[0] == STATEMENTS_KIND else ():
        assert one.key == from_wire(at[0]) == key_of(at[0]) == from_key_bytes(key_bytes(at[0]))
        assert type(one.key) is type(key_of(at[0])) and scope_of(one.key) == scope_of(at[0]) == scope_of(fact_of(one.key))
        assert anchor_of(at[0]) == anchor_of(one.key) == anchor_of(anchor_of(one.key))


def check_header(raw: bytes) -> None:
    found = tried(decode_header, raw)
    assert found is None or encode_header(found[0]) == raw


def check_frame(raw: bytes) -> None:
    found = tried(decode_frame, raw)
    assert found is None or found[0].frame == raw
    parts = codec.split(raw, OPS_MAX)
    slowly = tried(lambda raw: codec.decode(raw, "segment", items_max=OPS_MAX), raw)
    assert parts == (slowly[0] if slowly is not None and _is_frame(slowly[0]) else None)


def _is_frame(parts: Any) -> bool:
    if type(parts) is not tuple or len(parts) != 3 or type(parts[2]) is not tuple:
        return False
    return all(type(part) is bytes for part in (*parts[:2], *parts[2]))


TARGETS = {
    "value": Target([*wire.OPS, *wire.HEADERS], check_value, lambda raw: codec.decode(raw, "value")),
    "op": Target(wire.OPS, check_op, decode_op),
    "header": Target(wire.HEADERS, check_header, decode_header),
    "frame": Target(wire.FRAMES, check_frame, decode_frame),
}

PEAK_BYTES_MAX = {"value": 3 << 20, "op": 3 << 20, "header": 10 << 20, "frame": 3 << 20}
"""For inputs of at most 64 KiB: arrays of 256, and in headers of 1001, for each of the library's 1024 levels."""


def peak_bytes(decode: Callable[[bytes], Any], raw: bytes) -> int:
    """The most memory that decoding takes beyond its input."""
    assert len(raw) <= FRAME_BYTES_MAX
    tracemalloc.start()
    try:
        tried(decode, raw)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
