"""Strict canonical msgpack: what decodes re-encodes to the same bytes (R4.2).

Values are None, bool, 64-bit int, str, bytes and tuples of values. No maps (so no duplicate keys), floats or extension
types. The trick: decode with the library, refuse every other type, encode again and compare. A longer form of any
integer, length or string then differs. The library sets an array's memory aside when it reads its length, so arrays have a
limit: what a hostile input can cost is that times 8 bytes times the library's greatest depth of 1024.
"""

from __future__ import annotations

import threading
from typing import Any, Optional

import msgpack

from nsync.errors import RejectedSegment

DEPTH_MAX = 8
"""Nesting of arrays: an op needs 5 at most."""
ITEMS_MAX = 256
"""Values in an array, unless the caller says otherwise: 2 MiB at the most hostile."""


class _Packer(threading.local):
    """One packer for each thread: making one anew costs more than most values do."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True).pack


_packer = _Packer()


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`. Raises TypeError for what has none: a bug of the caller's, never a peer's."""
    _walk(value, 0)
    return pack(value)


def decode(raw: bytes, what: str, items_max: int = ITEMS_MAX) -> Any:
    """The value whose canonical bytes are `raw`. Raises RejectedSegment, naming `what` was to be decoded."""
    value = _load(raw, what, items_max)
    check(value, what)
    return _canonical(value, raw, what)


def unpack(raw: bytes, what: str, items_max: int = ITEMS_MAX) -> Any:
    """As `decode`, for callers who check the type of every part themselves: floats, empty maps and empty extensions pass."""
    return _canonical(_load(raw, what, items_max), raw, what)


def load(raw: bytes) -> Any:
    """The value in bytes that are known to be canonical: what was decoded before it was stored."""
    return msgpack.unpackb(raw, raw=False, use_list=False)


def split(raw: bytes, count_max: int) -> Optional[tuple[bytes, bytes, tuple[bytes, ...]]]:
    """The parts of an array of two byte strings and an array of at most `count_max` byte strings; None if `raw` is no such array.

    What `decode` would say of it, without room for arrays that only pretend to be long: every part found is a part of `raw`.
    """
    try:
        (first, second), at = _strings(raw, 1, 2)
        count = raw[at] & 0x0F if raw[at] != _ARRAY16 else int.from_bytes(raw[at + 1 : at + 3], "big")
        others, _ = _strings(raw, at + (3 if raw[at] == _ARRAY16 else 1), min(count, count_max))
    except (IndexError, KeyError):
        return None
    parts = (first, second, tuple(others))
    return parts if pack(parts) == raw else None


def check(value: Any, what: str, depth: int = 0) -> None:
    """Raises RejectedSegment unless `value`, which lies `depth` arrays deep, is of the types that canonical msgpack has."""
    try:
        _walk(value, depth)
    except TypeError as error:
        raise RejectedSegment(f"{what} is not canonical msgpack: TypeError: {error}") from error


def pack(value: Any) -> bytes:
    """The bytes of a value that is known to be canonical."""
    packed: bytes = _packer.pack(value)
    return packed


def _load(raw: bytes, what: str, items_max: int) -> Any:
    try:
        return msgpack.unpackb(raw, raw=False, use_list=False, max_array_len=items_max, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RejectedSegment(f"{what} is not canonical msgpack: {type(error).__name__}: {str(error)[:80]}") from error


def _canonical(value: Any, raw: bytes, what: str) -> Any:
    try:
        same = pack(value) == raw
    except (ValueError, TypeError, RecursionError) as error:  # nested too deep for the library
        raise RejectedSegment(f"{what} is not canonical msgpack: {type(error).__name__}: {str(error)[:80]}") from error
    if not same:
        raise RejectedSegment(f"{what} is msgpack, but not in its canonical form")
    return value


_ARRAY16 = 0xDC
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""How a byte string begins, and how many bytes its length has then."""


def _strings(raw: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    """The `count` byte strings that follow one another from `at` on, and where they end. No length is checked."""
    found = []
    for _ in range(count):
        start = at + 1 + _LENGTH_BYTES[raw[at]]
        at = start + int.from_bytes(raw[at + 1 : start], "big")
        found.append(raw[start:at])
    return found, at


def _walk(value: Any, depth: int) -> None:
    if value is None or type(value) in (bool, int, str, bytes):
        return
    if type(value) is not tuple:
        raise TypeError(f"{type(value).__name__} has no place in canonical msgpack")
    if depth == DEPTH_MAX:
        raise TypeError(f"arrays are nested deeper than {DEPTH_MAX}")
    for item in value:
        _walk(item, depth + 1)
