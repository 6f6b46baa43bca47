"""Canonical JSON: one text for each value, so that equal metadata are equal bytes.

No white space, members sorted by code point and none twice, only those characters escaped that must be, integers within 64
bits, other numbers as Python's repr writes them: the fewest digits that give the same double. The text is checked by reading
it and writing it again. What a database cannot hold is refused too: U+0000, half surrogates, numbers beyond a double.
"""

from __future__ import annotations

import json
import re
from typing import Any

from nsync.errors import RejectedSegment

JSON_BYTES_MAX = 60_000
"""One value, in UTF-8: it must fit an op of 64 KiB."""
JSON_DEPTH_MAX = 32

_INTEGER_MIN, _INTEGER_MAX = -(1 << 63), (1 << 63) - 1
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def canonical_json(value: Any) -> str:
    """The one text of `value`. Raises ValueError or TypeError for what has none, or one that no peer would accept."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    try:
        check_json(text)
    except RejectedSegment as error:
        raise ValueError(str(error)) from error
    return text


def check_json(text: Any) -> None:
    """Raises RejectedSegment unless `text` is canonical JSON within the limits."""
    _parsed(text)


def check_json_object(text: Any) -> None:
    """Raises RejectedSegment unless `text` is a canonical JSON object within the limits."""
    if type(_parsed(text)) is not dict:
        raise RejectedSegment(f"{text[:80]!r} is not a JSON object")


def _parsed(text: Any) -> Any:
    if type(text) is not str:
        raise RejectedSegment(f"{type(text).__name__} is no JSON text")
    try:
        if len(text.encode()) > JSON_BYTES_MAX:
            raise ValueError(f"more than {JSON_BYTES_MAX} bytes")
        value = json.loads(text, parse_int=_integer)
        again = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        fits = _fits(value, JSON_DEPTH_MAX)
    except (ValueError, RecursionError) as error:
        raise RejectedSegment(f"{text[:80]!r} is no JSON that can be shared: {str(error)[:80]}") from error
    if again != text or not fits or _NUL.search(text):
        raise RejectedSegment(f"{text[:80]!r} is JSON, but not canonical, too deep, or with a character U+0000")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not _INTEGER_MIN <= int(digits) <= _INTEGER_MAX:
        raise ValueError("a whole number has more than 64 bits")
    return int(digits)


def _fits(value: Any, depth: int) -> bool:
    if type(value) not in (dict, list):
        return True
    return depth > 0 and all(_fits(item, depth - 1) for item in (value.values() if type(value) is dict else value))
