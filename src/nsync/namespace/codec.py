"""Strict canonical msgpack: what decodes re-encodes to the same bytes (R4.2).

Values are None, bool, 64-bit int, str, bytes and tuples of values. No maps (so no duplicate keys), floats or extension
types. The trick: decode with the library, refuse every other type, encode again and compare. A longer form of any
integer, length or string then differs. Lengths are bounded by the input, which the caller bounds.
"""

from __future__ import annotations

from typing import Any

import msgpack

from nsync.errors import RejectedSegment

DEPTH_MAX = 8
"""Nesting of arrays: a segment's frame needs 6 at most."""


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`. Raises TypeError for what has none: a bug of the caller's, never a peer's."""
    _check(value, 0)
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode(raw: bytes, what: str) -> Any:
    """The value whose canonical bytes are `raw`. Raises RejectedSegment, naming `what` was to be decoded."""
    try:
        value = msgpack.unpackb(raw, raw=False, use_list=False, strict_map_key=True)
        _check(value, 0)
        canonical = msgpack.packb(value, use_bin_type=True) == raw
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RejectedSegment(f"{what} is not canonical msgpack: {type(error).__name__}: {str(error)[:80]}") from error
    if not canonical:
        raise RejectedSegment(f"{what} is msgpack, but not in its canonical form")
    return value


def _check(value: Any, depth: int) -> None:
    if value is None or type(value) in (bool, int, str, bytes):
        return
    if type(value) is not tuple:
        raise TypeError(f"{type(value).__name__} has no place in canonical msgpack")
    if depth == DEPTH_MAX:
        raise TypeError(f"arrays are nested deeper than {DEPTH_MAX}")
    for item in value:
        _check(item, depth + 1)
