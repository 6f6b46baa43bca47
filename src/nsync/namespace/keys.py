"""What statements are about: facts and their attributes (R3.1), and the values they may take.

A key is a frozen dataclass (a named tuple would make the DID cms:DISK equal to the RSE DISK of cms); its canonical bytes begin
with a tag, so that keys of one kind lie together. Names are checked here
for what could harm any reader (length, control characters); whether a name fits a given Rucio instance is for its
bridge to say, which parks what does not fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional, Union

from nsync.errors import RejectedSegment
from nsync.namespace import codec

SCOPE_CHARS_MAX = 255
NAME_CHARS_MAX = 1024
PATH_CHARS_MAX = 1024
FIELD_CHARS_MAX = 64
DOI_CHARS_MAX = 255
KEYS_KEPT = 1 << 15
"""Keys whose bytes are remembered: a changeset looks at each key a dozen times. Some 20 MB at most."""
PROTOCOLS_MAX = 16
ATTRIBUTES_MAX = 64
BYTES_MAX = 1 << 50
"""1 PiB: no file is larger, and the sizes of thousands still add up within the 63 bits of Rucio's columns."""

ADLER32_BYTES = 4
MD5_BYTES = 16

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

FILE, DATASET, CONTAINER = "F", "D", "C"
"""DID types, by Rucio's letters."""

PUBLIC, SUSPENDED = "PUBLIC", "SUSPENDED"
"""Open-data states that are shared; a draft is an entry without a state."""


@dataclass(frozen=True, order=True)
class Scope:
    """A scope exists."""

    scope: str

    def __str__(self) -> str:
        return f"scope {self.scope}"


@dataclass(frozen=True, order=True)
class Did:
    """A file, dataset or container exists; the value is its Identity."""

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"


@dataclass(frozen=True, order=True)
class Attachment:
    """`child` is in `parent`."""

    parent: Did
    child: Did

    def __str__(self) -> str:
        return f"{self.child} in {self.parent}"


@dataclass(frozen=True, order=True)
class Rse:
    """`instance` lends its storage element `rse` for reading."""

    instance: str
    rse: str

    def __str__(self) -> str:
        return f"RSE {self.rse} of {self.instance}"


@dataclass(frozen=True, order=True)
class Replica:
    """A file is available at an RSE; the value is its path below the prefix of the RSE's protocols."""

    did: Did
    rse: Rse

    def __str__(self) -> str:
        return f"replica of {self.did} at {self.rse}"


Fact = Union[Scope, Did, Attachment, Rse, Replica]


@dataclass(frozen=True, order=True)
class Attribute:
    """One field of a fact."""

    fact: Fact
    field: str

    def __str__(self) -> str:
        return f"{self.field} of {self.fact}"


Key = Union[Fact, Attribute]

CLOSED = "closed"
"""Did: True closed, False open."""
OPENDATA = "opendata"
"""Did: PUBLIC or SUSPENDED."""
DOI = "doi"
"""Did: the DOI."""
PROTOCOLS = "protocols"
"""Rse: tuple of Protocol."""
ATTRIBUTES = "attributes"
"""Rse: tuple of (key, value) pairs, sorted."""


class Identity(NamedTuple):
    """What a DID name stands for, for ever (R3.6). Checksums are raw bytes, so that there is one form of each."""

    type: str
    size: Optional[int] = None
    adler32: Optional[bytes] = None
    md5: Optional[bytes] = None

    def agrees(self, other: Identity) -> bool:
        """Whether both can be the same content: equal wherever both say something."""
        return self.type == other.type and all(a is None or b is None or a == b for a, b in zip(self[1:], other[1:]))

    def __str__(self) -> str:
        parts = {"F": "file", "D": "dataset", "C": "container"}[self.type]
        if self.size is not None:
            parts += f" of {self.size} bytes"
        if self.adler32 is not None:
            parts += f", adler32 {self.adler32.hex()}"
        return parts + (f", md5 {self.md5.hex()}" if self.md5 is not None else "")


class Protocol(NamedTuple):
    """A door for reading. `lan`, `wan` and `tpc` are Rucio's priorities; 0 or None closes it."""

    scheme: str
    hostname: str
    port: int
    prefix: str
    impl: str
    lan: Optional[int]
    wan: Optional[int]
    tpc: Optional[int]


_TAGS: dict[type, int] = {Scope: 1, Did: 2, Attachment: 3, Rse: 5, Replica: 6, Attribute: 7}  # 4: constituents of archives


def fact_of(key: Key) -> Fact:
    """The fact that `key` is, or is an attribute of."""
    return key.fact if isinstance(key, Attribute) else key


def scope_of(key: Key) -> Optional[str]:
    """The scope whose home decides about `key`; None for RSEs, which only their own instance decides about (R3.1)."""
    fact = fact_of(key)
    if isinstance(fact, Scope):
        return fact.scope
    if isinstance(fact, Did):
        return fact.scope
    if isinstance(fact, Attachment):
        return fact.parent.scope
    return fact.did.scope if isinstance(fact, Replica) else None


def ends_of(key: Key) -> tuple[Union[Did, Rse], ...]:
    """The DIDs and RSEs that an attachment or replica hangs on, in Rucio by foreign key; nothing for other keys."""
    if isinstance(key, Attachment):
        return (key.parent, key.child)
    return (key.did, key.rse) if isinstance(key, Replica) else ()


def to_wire(key: Key) -> tuple[Any, ...]:
    """The tuple that stands for `key` in canonical msgpack: tag, then strings."""
    if isinstance(key, Attribute):
        return (_TAGS[Attribute], key.field, *to_wire(key.fact))
    if isinstance(key, Attachment):
        return (_TAGS[Attachment], key.parent.scope, key.parent.name, key.child.scope, key.child.name)
    if isinstance(key, Replica):
        return (_TAGS[Replica], key.did.scope, key.did.name, key.rse.instance, key.rse.rse)
    if isinstance(key, Did):
        return (_TAGS[Did], key.scope, key.name)
    return (_TAGS[Rse], key.instance, key.rse) if isinstance(key, Rse) else (_TAGS[Scope], key.scope)


def from_wire(wire: Any) -> Key:
    """The key that `to_wire` made `wire` from. Raises RejectedSegment."""
    if type(wire) is tuple and len(wire) > 2 and type(wire[0]) is int and wire[0] == _TAGS[Attribute]:
        return Attribute(_fact(wire[2:]), _text(wire[1], "field", FIELD_CHARS_MAX))
    return _fact(wire)


@lru_cache(maxsize=KEYS_KEPT)
def key_bytes(key: Key) -> bytes:
    """The canonical bytes of `key`: what it is stored and compared by."""
    return codec.encode(to_wire(key))


@lru_cache(maxsize=KEYS_KEPT)
def from_key_bytes(raw: bytes) -> Key:
    """The key whose canonical bytes are `raw`."""
    return from_wire(codec.decode(raw, "key"))


def check_value(key: Key, value: Any) -> Any:
    """The value of an Assert about `key`, typed, from its wire form. Raises RejectedSegment for what no reader can take.

    Fields that this version does not know are kept as they are: they make no reading yet.
    """
    if isinstance(key, Attribute):
        return _ATTRIBUTE_VALUES.get((type(key.fact), key.field), _as_it_is)(value)
    if isinstance(key, Did):
        return _identity(value)
    if isinstance(key, Replica):
        return _text(value, "path", PATH_CHARS_MAX)
    return _require(value is True, value, f"the value of {type(key).__name__}, which is true")


def _fact(wire: Any) -> Fact:
    if type(wire) is not tuple or not wire or type(wire[0]) is not int or wire[0] not in _FACTS:
        raise RejectedSegment(f"{_show(wire)} is no key")
    limits, build = _FACTS[wire[0]]
    if len(wire) != len(limits) + 1:
        raise RejectedSegment(f"{_show(wire)} is no key: it needs {len(limits)} names")
    return build(*(_text(part, "name", limit) for part, limit in zip(wire[1:], limits)))


_FACTS: dict[int, tuple[tuple[int, ...], Callable[..., Fact]]] = {
    _TAGS[Scope]: ((SCOPE_CHARS_MAX,), Scope),
    _TAGS[Did]: ((SCOPE_CHARS_MAX, NAME_CHARS_MAX), Did),
    _TAGS[Attachment]: ((SCOPE_CHARS_MAX, NAME_CHARS_MAX) * 2, lambda ps, pn, cs, cn: Attachment(Did(ps, pn), Did(cs, cn))),
    _TAGS[Rse]: ((NAME_CHARS_MAX,) * 2, Rse),
    _TAGS[Replica]: ((SCOPE_CHARS_MAX, NAME_CHARS_MAX) + (NAME_CHARS_MAX,) * 2, lambda s, n, i, r: Replica(Did(s, n), Rse(i, r))),
}


def _identity(value: Any) -> Identity:
    _require(type(value) is tuple and len(value) == 4 and value[0] in (FILE, DATASET, CONTAINER), value, "an identity")
    kind, size, adler32, md5 = value
    if kind != FILE:
        _require((size, adler32, md5) == (None, None, None), value, "an identity: a collection has no bytes or checksums")
    else:
        _require(type(size) is int and 0 <= size <= BYTES_MAX, value, "an identity: a file has a size")
        _require(adler32 is None or (type(adler32) is bytes and len(adler32) == ADLER32_BYTES), value, "an identity: adler32 is 4 bytes")
        _require(md5 is None or (type(md5) is bytes and len(md5) == MD5_BYTES), value, "an identity: md5 is 16 bytes")
    return Identity(*value)


def _protocols(value: Any) -> tuple[Protocol, ...]:
    _require(type(value) is tuple and len(value) <= PROTOCOLS_MAX, value, f"at most {PROTOCOLS_MAX} protocols")
    return tuple(_protocol(item) for item in value)


def _protocol(value: Any) -> Protocol:
    _require(type(value) is tuple and len(value) == len(Protocol._fields), value, "a protocol")
    protocol = Protocol(*value)
    for text in (protocol.scheme, protocol.impl):
        _text(text, "protocol field", NAME_CHARS_MAX)
    for text in (protocol.hostname, protocol.prefix):
        _require(type(text) is str and len(text) <= NAME_CHARS_MAX and not _CONTROL.search(text), value, "a protocol")
    _require(type(protocol.port) is int and 0 <= protocol.port < 1 << 16, value, "a protocol: its port is 0 to 65535")
    for priority in (protocol.lan, protocol.wan, protocol.tpc):
        _require(priority is None or (type(priority) is int and 0 <= priority < 1 << 16), value, "a protocol: priorities are small numbers")
    return protocol


def _attributes(value: Any) -> tuple[tuple[str, str], ...]:
    _require(type(value) is tuple and len(value) <= ATTRIBUTES_MAX, value, f"at most {ATTRIBUTES_MAX} attributes")
    pairs = []
    for pair in value:
        _require(type(pair) is tuple and len(pair) == 2, pair, "a pair of key and value")
        pairs.append((_text(pair[0], "attribute", 255), _text(pair[1], "attribute value", 255)))
    _require(pairs == sorted(set(pairs)), value, "sorted attributes")
    return tuple(pairs)


def _doi(value: Any) -> str:
    text = _text(value, "DOI", DOI_CHARS_MAX)
    _require(_DOI.fullmatch(text) is not None, value, "a DOI")
    return text


_DOI = re.compile(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+", re.ASCII)
"""As Rucio's core/opendata.py checks it."""


def _as_it_is(value: Any) -> Any:
    return value


_ATTRIBUTE_VALUES: dict[tuple[type, str], Callable[[Any], Any]] = {
    (Did, CLOSED): lambda value: _require(type(value) is bool, value, "true (closed) or false (open)"),
    (Did, OPENDATA): lambda value: _require(value in (PUBLIC, SUSPENDED), value, "PUBLIC or SUSPENDED"),
    (Did, DOI): _doi,
    (Rse, PROTOCOLS): _protocols,
    (Rse, ATTRIBUTES): _attributes,
}


def _text(value: Any, what: str, chars_max: int) -> str:
    if type(value) is not str or not 0 < len(value) <= chars_max:
        raise RejectedSegment(f"{_show(value)} is no {what}: it needs 1 to {chars_max} characters")
    if _CONTROL.search(value):
        raise RejectedSegment(f"{what} {_show(value)} has a control character")
    return value


def _require(holds: bool, value: Any, what: str) -> Any:
    if not holds:
        raise RejectedSegment(f"{_show(value)} is not {what}")
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
