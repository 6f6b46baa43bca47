"""What statements are about: facts, and attributes of them (R3.1).

A key is its own wire form: a tuple of a tag and the names after it, so that keys of one kind are never equal to those of
another (the DID cms:DISK is not the RSE DISK of cms), and are compared, hashed and encoded as fast as any tuple. A plain
tuple with the same parts is equal to the key. The bytes begin with the tag, so that keys of one kind lie together.
Names are checked here for what could harm any reader (length, control characters); whether a name fits a given Rucio instance is
for its bridge to say, which parks what does not fit. What may be said about a key is told in `fields`.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Optional, Union

from nsync.errors import RejectedSegment
from nsync.namespace import codec, fields
from nsync.namespace.fields import ADLER32_BYTES as ADLER32_BYTES
from nsync.namespace.fields import ATTRIBUTES as ATTRIBUTES
from nsync.namespace.fields import BYTES_MAX as BYTES_MAX
from nsync.namespace.fields import CLOSED as CLOSED
from nsync.namespace.fields import CONTAINER as CONTAINER
from nsync.namespace.fields import DATASET as DATASET
from nsync.namespace.fields import DOI as DOI
from nsync.namespace.fields import FILE as FILE
from nsync.namespace.fields import MD5_BYTES as MD5_BYTES
from nsync.namespace.fields import NAME_CHARS_MAX as NAME_CHARS_MAX
from nsync.namespace.fields import OPENDATA as OPENDATA
from nsync.namespace.fields import PROTOCOLS as PROTOCOLS
from nsync.namespace.fields import PUBLIC as PUBLIC
from nsync.namespace.fields import SUSPENDED as SUSPENDED
from nsync.namespace.fields import Identity as Identity
from nsync.namespace.fields import Protocol as Protocol
from nsync.namespace.fields import check_text, show

SCOPE_CHARS_MAX = 255
FIELD_CHARS_MAX = 260
"""The prefix of JSON metadata, and a key of 255 characters."""

Wire = tuple[Any, ...]
"""A key or statement as plain tuples, as the codec gives it."""


class _Key(Wire):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self[1:]}"

    def __reduce__(self) -> Any:
        return key_of, (tuple(self),)


def _part(index: int) -> Any:
    return property(itemgetter(index))


class Scope(_Key):
    """A scope exists."""

    __slots__ = ()
    scope: str = _part(1)

    def __new__(cls, scope: str) -> Scope:
        return tuple.__new__(cls, (fields.SCOPE, scope))

    def __str__(self) -> str:
        return f"scope {self.scope}"


class Did(_Key):
    """A file, dataset or container exists; the value is its Identity."""

    __slots__ = ()
    scope: str = _part(1)
    name: str = _part(2)

    def __new__(cls, scope: str, name: str) -> Did:
        return tuple.__new__(cls, (fields.DID, scope, name))

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"


class Attachment(_Key):
    """`child` is in `parent`."""

    __slots__ = ()

    def __new__(cls, parent: Did, child: Did) -> Attachment:
        return tuple.__new__(cls, (fields.ATTACHMENT, *parent[1:], *child[1:]))

    @property
    def parent(self) -> Did:
        return Did(self[1], self[2])

    @property
    def child(self) -> Did:
        return Did(self[3], self[4])

    def __str__(self) -> str:
        return f"{self.child} in {self.parent}"


class Constituent(_Key):
    """The file `child` is in the file `archive`. Its sizes and checksums are the child's own."""

    __slots__ = ()

    def __new__(cls, archive: Did, child: Did) -> Constituent:
        return tuple.__new__(cls, (fields.CONSTITUENT, *archive[1:], *child[1:]))

    @property
    def archive(self) -> Did:
        return Did(self[1], self[2])

    @property
    def child(self) -> Did:
        return Did(self[3], self[4])

    def __str__(self) -> str:
        return f"{self.child} in archive {self.archive}"


class Rse(_Key):
    """`instance` lends its storage element `rse` for reading."""

    __slots__ = ()
    instance: str = _part(1)
    rse: str = _part(2)

    def __new__(cls, instance: str, rse: str) -> Rse:
        return tuple.__new__(cls, (fields.RSE, instance, rse))

    def __str__(self) -> str:
        return f"RSE {self.rse} of {self.instance}"


class Replica(_Key):
    """A file is available at an RSE; the value is its path below the prefix of the RSE's protocols."""

    __slots__ = ()

    def __new__(cls, did: Did, rse: Rse) -> Replica:
        return tuple.__new__(cls, (fields.REPLICA, *did[1:], *rse[1:]))

    @property
    def did(self) -> Did:
        return Did(self[1], self[2])

    @property
    def rse(self) -> Rse:
        return Rse(self[3], self[4])

    def __str__(self) -> str:
        return f"replica of {self.did} at {self.rse}"


Fact = Union[Scope, Did, Attachment, Constituent, Rse, Replica]


class Attribute(_Key):
    """One field of a fact."""

    __slots__ = ()
    field: str = _part(1)

    def __new__(cls, fact: Fact, field: str) -> Attribute:
        return tuple.__new__(cls, (fields.ATTRIBUTE, field, *fact))

    @property
    def fact(self) -> Fact:
        return key_of(self[2:])  # type: ignore[return-value]  # an attribute of an attribute is no key

    def __str__(self) -> str:
        return f"{self.field} of {self.fact}"


Key = Union[Fact, Attribute]

_KINDS: dict[int, type] = {
    fields.SCOPE: Scope,
    fields.DID: Did,
    fields.ATTACHMENT: Attachment,
    fields.CONSTITUENT: Constituent,
    fields.RSE: Rse,
    fields.REPLICA: Replica,
    fields.ATTRIBUTE: Attribute,
}

_LIMITS: dict[int, tuple[int, ...]] = {
    fields.SCOPE: (SCOPE_CHARS_MAX,),
    fields.DID: (SCOPE_CHARS_MAX, NAME_CHARS_MAX),
    fields.ATTACHMENT: (SCOPE_CHARS_MAX, NAME_CHARS_MAX) * 2,
    fields.CONSTITUENT: (SCOPE_CHARS_MAX, NAME_CHARS_MAX) * 2,
    fields.RSE: (NAME_CHARS_MAX,) * 2,
    fields.REPLICA: (SCOPE_CHARS_MAX, NAME_CHARS_MAX) + (NAME_CHARS_MAX,) * 2,
}
"""The names of each kind of fact, by their greatest lengths."""


def fact_of(key: Key) -> Fact:
    """The fact that `key` is, or is an attribute of."""
    return key.fact if isinstance(key, Attribute) else key


def scope_of(key: Wire) -> Optional[str]:
    """The scope whose home decides about `key`; None for RSEs, which only their own instance decides about (R3.1)."""
    tag, scope = key[2:4] if key[0] == fields.ATTRIBUTE else key[:2]
    return None if tag == fields.RSE else scope


def ends_of(key: Key) -> tuple[Union[Did, Rse], ...]:
    """The DIDs and RSEs that an attachment, constituent or replica hangs on, in Rucio by foreign key; nothing for other keys."""
    if isinstance(key, Attachment):
        return (key.parent, key.child)
    if isinstance(key, Constituent):
        return (key.archive, key.child)
    return (key.did, key.rse) if isinstance(key, Replica) else ()


def anchor_of(key: Wire) -> Union[Did, Rse, Scope]:
    """The node that statements about `key` are indexed under: the DID, RSE or scope itself, the child, or the replica's DID."""
    fact = key[2:] if key[0] == fields.ATTRIBUTE else key
    if fact[0] in (fields.ATTACHMENT, fields.CONSTITUENT):
        return Did(fact[3], fact[4])
    if fact[0] == fields.REPLICA:
        return Did(fact[1], fact[2])
    return key_of(fact)  # type: ignore[return-value]


def to_wire(key: Key) -> Wire:
    """The plain tuple that stands for `key` in canonical msgpack: tag, then names."""
    return tuple(key)


def from_wire(wire: Any) -> Key:
    """The key that `to_wire` made `wire` from. Raises RejectedSegment."""
    check_key(wire)
    return key_of(wire)


def key_of(wire: Wire) -> Key:
    """The key of a wire form that was checked."""
    return tuple.__new__(_KINDS[wire[0]], wire)


def key_bytes(key: Wire) -> bytes:
    """The canonical bytes of a key or its wire form: what it is stored and compared by."""
    return codec.pack(key)


def from_key_bytes(raw: bytes) -> Key:
    """The key whose canonical bytes are `raw`."""
    return from_wire(codec.unpack(raw, "key"))


def check_key(wire: Any) -> None:
    """Raises RejectedSegment unless `wire` is the wire form of a key, down to the type of every part."""
    if type(wire) is tuple and len(wire) > 2 and type(wire[0]) is int and wire[0] == fields.ATTRIBUTE:
        check_text(wire[1], "field", FIELD_CHARS_MAX)
        wire = wire[2:]
    if type(wire) is not tuple or not wire or type(wire[0]) is not int or wire[0] not in _LIMITS:
        raise RejectedSegment(f"{show(wire)} is no key")
    limits = _LIMITS[wire[0]]
    if len(wire) != len(limits) + 1:
        raise RejectedSegment(f"{show(wire)} is no key: it needs {len(limits)} names")
    for name, limit in zip(wire[1:], limits):
        if type(name) is not str or not 0 < len(name) <= limit or not name.isprintable():  # every name comes by here
            check_text(name, "name", limit)


def check_value(key: Wire, value: Any) -> Any:
    """The value of an Assert about `key`, typed, from its wire form. Raises RejectedSegment for what no reader can take."""
    fields.check_value(key, value)
    return fields.typed(key, value)
