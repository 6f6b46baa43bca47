"""What docs/PROTOCOL.md says an op is, written out the obvious way: a value at a time, and without msgpack.

Shares no line with `nsync.namespace` and takes its limits from the page, so that a check that is forgotten there shows here.
"""

from __future__ import annotations

import re
from typing import Any

VERBS = {"create", "attach", "close", "meta", "replica", "publish", "suspend", "remove", "query", "download", "upload"}
NAMES = {1: (255,), 2: (255, 1024), 3: (255, 1024, 255, 1024), 4: (255, 1024, 255, 1024), 5: (1024, 1024), 6: (255, 1024, 1024, 1024)}
TEXTS = {"project", "datatype", "stream_name", "prod_step", "version", "campaign", "provenance", "phys_group"}
NUMBERS = {"run_number", "task_id", "panda_id", "lumiblocknr"}
FLAGS = {"closed", "monotonic", "hidden", "obsolete", "transient"}
CONTROLS = set(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)))
STATES = {"AVAILABLE", "BAD", "TEMPORARY_UNAVAILABLE"}


class NotCanonical(Exception):
    """Bytes that are no value."""


def value_of(raw: bytes, items_max: int = 256) -> Any:
    """The value whose canonical msgpack is `raw`. Raises NotCanonical."""
    value, end = _value(raw, 0, 0, items_max)
    _need(end == len(raw))
    return value


def is_op(raw: bytes) -> bool:
    """Whether `raw` may stand in a log."""
    try:
        op = value_of(raw)
    except NotCanonical:
        return False
    if len(raw) > 65536 or type(op) is not tuple or not op or type(op[0]) is not int or op[0] < 1:
        return False
    if op[0] == 1:
        keys = [said[0] for said in op[1:] if type(said) is tuple and said]
        return 1 <= len(keys) == len(op) - 1 <= 64 and all(map(_is_statement, op[1:])) and len(set(keys)) == len(keys)
    if op[0] == 3:
        return len(op) == 6 and _is_grant(*op[1:])
    return op[0] != 4 or (len(op) == 3 and _is_bytes(op[1], 16) and _is_number(op[2], 1, 1 << 62))


def is_json(text: Any) -> bool:
    """Whether `text` is canonical JSON within the limits."""
    try:
        return type(text) is str and len(text.encode()) <= 60_000 and _json(text, 0, 0) == len(text)
    except (NotCanonical, UnicodeEncodeError):
        return False


def _need(holds: bool) -> None:
    if not holds:
        raise NotCanonical


def _value(raw: bytes, at: int, depth: int, items_max: int) -> tuple[Any, int]:
    _need(at < len(raw))
    tag, at = raw[at], at + 1
    if tag < 0x80 or tag >= 0xE0:
        return (tag if tag < 0x80 else tag - 256), at
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    if 0xCC <= tag <= 0xCF or 0xD0 <= tag <= 0xD3:
        return _integer(raw, at, tag)
    if 0x90 <= tag <= 0x9F or tag in (0xDC, 0xDD):
        return _array(raw, at, tag, depth, items_max)
    if 0xA0 <= tag <= 0xBF or 0xD9 <= tag <= 0xDB:
        length, at = (tag - 0xA0, at) if tag <= 0xBF else _length(raw, at, tag - 0xD9, (32, 256, 65536))
        try:
            return _part(raw, at, length).decode(), at + length
        except UnicodeDecodeError:
            raise NotCanonical from None
    _need(0xC4 <= tag <= 0xC6)
    length, at = _length(raw, at, tag - 0xC4, (0, 256, 65536))
    return _part(raw, at, length), at + length


def _integer(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    size = 1 << (tag & 3)
    number = int.from_bytes(_part(raw, at, size), "big", signed=tag >= 0xD0)
    shorter = -32 if size == 1 else -(1 << (4 * size - 1))
    _need(number < shorter if tag >= 0xD0 else number >= (128 if size == 1 else 1 << (4 * size)))
    return number, at + size


def _array(raw: bytes, at: int, tag: int, depth: int, items_max: int) -> tuple[Any, int]:
    count, at = (tag - 0x90, at) if tag <= 0x9F else _length(raw, at, tag - 0xDC + 1, (0, 16, 65536))
    _need(depth < 8 and count <= items_max)
    items = []
    for _ in range(count):
        item, at = _value(raw, at, depth + 1, items_max)
        items.append(item)
    return tuple(items), at


def _length(raw: bytes, at: int, width: int, least: tuple[int, int, int]) -> tuple[int, int]:
    length = int.from_bytes(_part(raw, at, 1 << width), "big")
    _need(length >= least[width])
    return length, at + (1 << width)


def _part(raw: bytes, at: int, length: int) -> bytes:
    _need(at + length <= len(raw))
    return raw[at : at + length]


def _is_statement(said: Any) -> bool:
    if type(said) is not tuple or len(said) not in (1, 2):
        return False
    key = said[0]
    if type(key) is not tuple or not key:
        return False
    fact, field = (key[2:], key[1]) if _is(key[0], 7) else (key, "a fact")
    if not _is_text(field, 260):
        return False
    if not fact or type(fact[0]) is not int or fact[0] not in NAMES:
        return False
    limits = NAMES[fact[0]]
    if len(fact) != len(limits) + 1 or not all(_is_text(name, limit) for name, limit in zip(fact[1:], limits)):
        return False
    return len(said) == 1 or (_may_have(fact[0], said[1]) if fact is key else _may_be(fact[0], field, said[1]))


def _may_have(kind: int, value: Any) -> bool:
    if kind == 6:
        return _is_text(value, 1024)
    if kind != 2:
        return value is True
    if type(value) is not tuple or len(value) != 4:
        return False
    if value[0] != "F":
        return value in (("D", None, None, None), ("C", None, None, None))
    _, size, adler32, md5 = value
    return _is_number(size, 0, 1 << 50) and (adler32 is None or _is_bytes(adler32, 4)) and (md5 is None or _is_bytes(md5, 16))


def _may_be(kind: int, field: str, value: Any) -> bool:
    if kind == 1 and field == "attachable":
        return type(value) is bool
    if kind == 6 and field == "state":
        return type(value) is str and value in STATES
    if kind == 5 and field == "attributes":
        return _is_attributes(value)
    if kind == 5 and field == "protocols":
        return type(value) is tuple and len(value) <= 16 and all(map(_is_protocol, value))
    return _may_be_of_did(field, value) if kind == 2 else value is not None


def _may_be_of_did(field: str, value: Any) -> bool:
    if field in FLAGS:
        return type(value) is bool
    if field in TEXTS:
        return _is_text(value, 255)
    if field in NUMBERS:
        return _is_number(value, -(1 << 63) + 1, (1 << 63) - 1)
    if field == "opendata_meta":
        return is_json(value) and value.startswith("{")
    if field.startswith("json."):
        return is_json(value)
    checks = {
        "opendata": lambda: type(value) is str and value in ("PUBLIC", "SUSPENDED"),
        "doi": lambda: _is_text(value, 255) and re.fullmatch("10[.][0-9]{4,9}/[-._;()/:A-Za-z0-9]+", value) is not None,
        "record": lambda: _is_number(value, 0, (1 << 63) - 1),
        "events": lambda: _is_number(value, 0, 1 << 50),
        "guid": lambda: _is_bytes(value, 16),
    }
    return checks[field]() if field in checks else value is not None


def _is_attributes(value: Any) -> bool:
    if type(value) is not tuple or len(value) > 64:
        return False
    if not all(type(pair) is tuple and len(pair) == 2 and all(_is_text(text, 255) for text in pair) for pair in value):
        return False
    return all(one < other for one, other in zip(value, value[1:]))


def _is_protocol(value: Any) -> bool:
    if type(value) is not tuple or len(value) != 8:
        return False
    scheme, hostname, port, prefix, impl, *priorities = value
    texts = _is_text(scheme, 1024) and _is_text(impl, 1024) and all(text == "" or _is_text(text, 1024) for text in (hostname, prefix))
    return texts and _is_number(port, 0, 65535) and all(n is None or _is_number(n, 0, 65535) for n in priorities)


def _is_grant(to: Any, scope: Any, prefix: Any, verbs: Any, not_after_ms: Any) -> bool:
    names = _is_text(to, 255) and _is_text(scope, 255) and (prefix == "" or _is_text(prefix, 1024))
    known = type(verbs) is tuple and verbs and all(type(verb) is str and verb in VERBS for verb in verbs)
    if not names or not known or any(one >= other for one, other in zip(verbs, verbs[1:])):
        return False
    return not_after_ms is None or _is_number(not_after_ms, 0, 1 << 48)


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _is_number(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_bytes(value: Any, length: int) -> bool:
    return type(value) is bytes and len(value) == length


def _is_text(value: Any, chars_max: int) -> bool:
    return type(value) is str and 1 <= len(value) <= chars_max and not CONTROLS.intersection(value)


_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00(?:0[1-7bef]|1[0-9a-f]))*"')
_NUMBER = re.compile(r"-?[0-9]+(?:[.][0-9]+)?(?:e[-+][0-9]+)?")


def _json(text: str, at: int, depth: int) -> int:
    """Where the canonical JSON value ends that begins at `at`."""
    for word in ("null", "true", "false"):
        if text.startswith(word, at):
            return at + len(word)
    if text[at : at + 1] in ("[", "{"):
        _need(depth < 32)
        return _json_members(text, at + 1, depth + 1, "]" if text[at] == "[" else "}")
    found = (_STRING if text[at : at + 1] == '"' else _NUMBER).match(text, at)
    _need(found is not None)
    token = found[0]  # type: ignore[index]
    if token[0] != '"' and ("." in token or "e" in token):
        _need(repr(float(token)) == token)
    elif token[0] != '"':
        _need(len(token) <= 20 and str(int(token)) == token and -(1 << 63) <= int(token) < 1 << 63)
    return at + len(token)


def _json_members(text: str, at: int, depth: int, end: str) -> int:
    names: list[str] = []
    while not text.startswith(end, at):
        if end == "}":
            name = _STRING.match(text, at)
            _need(name is not None)
            names.append(_unescaped(name[0]))  # type: ignore[index]
            at += len(name[0])  # type: ignore[index]
            _need(text.startswith(":", at))
            at += 1
        at = _json(text, at, depth)
        if not text.startswith(end, at):
            _need(text.startswith(",", at) and not text.startswith(end, at + 1))
            at += 1
    _need(all(one < other for one, other in zip(names, names[1:])))
    return at + 1


def _unescaped(string: str) -> str:
    short = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
    return re.sub(r"\\(u....|.)", lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "u" else short.get(m[1], m[1]), string[1:-1])
