"""What may be said about a fact or one of its fields: types, limits, and the checks that keep them (R3.1, 6.5, 6.6).

A value is checked for what could harm any reader: its type, its size, control characters. Whether it fits the columns of a
given Rucio is for its bridge to say, which parks what does not fit (R7.6): Rucio may widen a column, and must not thereby
cut a log off for those who have not. Fields that this version does not know are kept as they are; they make no reading yet.

Checks take values as the wire has them, and test the type of every part: the codec leaves that to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from nsync.errors import RejectedSegment
from nsync.namespace import codec
from nsync.namespace.jsontext import check_json, check_json_object

SCOPE, DID, ATTACHMENT, CONSTITUENT, RSE, REPLICA, ATTRIBUTE = range(1, 8)
"""The tags that keys begin with on the wire."""

TEXT_CHARS_MAX = 255
NAME_CHARS_MAX = 1024
PATH_CHARS_MAX = 1024
PROTOCOLS_MAX = 16
ATTRIBUTES_MAX = 64
BYTES_MAX = 1 << 50
"""1 PiB: no file is larger, and the sizes of thousands still add up within the 63 bits of Rucio's columns."""
EVENTS_MAX = 1 << 50
"""For the same reason."""
NUMBER_MAX = (1 << 63) - 1
"""What a database's BIGINT holds."""

ADLER32_BYTES = 4
MD5_BYTES = 16
GUID_BYTES = 16

FILE, DATASET, CONTAINER = "F", "D", "C"
"""DID types, by Rucio's letters."""

PUBLIC, SUSPENDED = "PUBLIC", "SUSPENDED"
"""Open-data states that are shared; a draft is an entry without a state."""

STATES = AVAILABLE, BAD, TEMPORARY_UNAVAILABLE = "AVAILABLE", "BAD", "TEMPORARY_UNAVAILABLE"
"""States of a replica that are facts for others. One without a state is AVAILABLE, for that is what the Replica says.

BAD and TEMPORARY_UNAVAILABLE are verdicts of the storage's owner about a replica that stays in the namespace: nobody should read it
there now, and it can come back by a word, without a new path. COPYING and UNAVAILABLE are not replicas yet, and
BEING_DELETED is one no more: they are steps of local transfers and deletions, told by the Replica's Assert and Retract.
"""

CLOSED = "closed"
"""Did: True closed, False open."""
OPENDATA = "opendata"
"""Did: PUBLIC or SUSPENDED."""
DOI = "doi"
"""Did: the DOI."""
RECORD = "record"
"""Did: the number of its record in the open-data portal."""
OPENDATA_META = "opendata_meta"
"""Did: the open-data document, whole, as canonical JSON: Rucio replaces it whole, and a mixture of two might be neither's."""
MONOTONIC, HIDDEN, OBSOLETE = "monotonic", "hidden", "obsolete"
"""Did: flags."""
PROTOCOLS = "protocols"
"""Rse: tuple of Protocol."""
ATTRIBUTES = "attributes"
"""Rse: tuple of (key, value) pairs, sorted."""
STATE = "state"
"""Replica: AVAILABLE, BAD or TEMPORARY_UNAVAILABLE."""
ATTACHABLE = "attachable"
"""Scope: False hides the attachments to its DIDs whose past holds the mark (R5.5)."""
JSON_PREFIX = "json."
"""Did: a field `json.<key>` has that key of the DID's JSON metadata, as canonical JSON."""


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


Check = Callable[[Any], None]
"""Raises RejectedSegment for a value that no reader can take."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_text(value: Any, what: str, chars_max: int) -> None:
    """Raises RejectedSegment unless `value` is a text of 1 to `chars_max` characters without control characters."""
    if type(value) is not str or not 0 < len(value) <= chars_max:
        raise RejectedSegment(f"{show(value)} is no {what}: it needs 1 to {chars_max} characters")
    if not value.isprintable() and _CONTROL.search(value):
        raise RejectedSegment(f"{what} {show(value)} has a control character")


def require(holds: bool, value: Any, what: str) -> None:
    """Raises RejectedSegment unless `holds`."""
    if not holds:
        raise RejectedSegment(f"{show(value)} is not {what}")


def show(value: Any) -> str:
    """`value` in a text, cut to a length that a log can take."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _text(chars_max: int = TEXT_CHARS_MAX, what: str = "text") -> Check:
    return lambda value: check_text(value, what, chars_max)


def _number(low: int, high: int) -> Check:
    what = f"a number from {low} to {high}"
    return lambda value: require(type(value) is int and low <= value <= high, value, what)


def _flag(what: str = "true or false") -> Check:
    return lambda value: require(type(value) is bool, value, what)


def _bytes(length: int) -> Check:
    return lambda value: require(type(value) is bytes and len(value) == length, value, f"{length} bytes")


def _one_of(*values: str) -> Check:
    return lambda value: require(value in values, value, " or ".join(values))


def _true(of: str) -> Check:
    return lambda value: require(value is True, value, f"the value of {of}, which is true")


def _identity(value: Any) -> None:
    require(type(value) is tuple and len(value) == 4 and type(value[0]) is str, value, "an identity")
    kind, size, adler32, md5 = value
    if kind != FILE:
        require(kind in (DATASET, CONTAINER), value, "an identity")
        require(size is adler32 is md5 is None, value, "an identity: a collection has no bytes or checksums")
        return
    require(type(size) is int and 0 <= size <= BYTES_MAX, value, "an identity: a file has a size")
    require(adler32 is None or (type(adler32) is bytes and len(adler32) == ADLER32_BYTES), value, "an identity: adler32 is 4 bytes")
    require(md5 is None or (type(md5) is bytes and len(md5) == MD5_BYTES), value, "an identity: md5 is 16 bytes")


def _protocols(value: Any) -> None:
    require(type(value) is tuple and len(value) <= PROTOCOLS_MAX, value, f"at most {PROTOCOLS_MAX} protocols")
    for item in value:
        _protocol(item)


def _protocol(value: Any) -> None:
    require(type(value) is tuple and len(value) == len(Protocol._fields), value, "a protocol")
    protocol = Protocol(*value)
    for text in (protocol.scheme, protocol.impl):
        check_text(text, "protocol field", NAME_CHARS_MAX)
    for text in (protocol.hostname, protocol.prefix):
        require(type(text) is str and len(text) <= NAME_CHARS_MAX and not _CONTROL.search(text), value, "a protocol")
    require(type(protocol.port) is int and 0 <= protocol.port < 1 << 16, value, "a protocol: its port is 0 to 65535")
    for priority in (protocol.lan, protocol.wan, protocol.tpc):
        require(priority is None or (type(priority) is int and 0 <= priority < 1 << 16), value, "a protocol: priorities are small numbers")


def _attributes(value: Any) -> None:
    require(type(value) is tuple and len(value) <= ATTRIBUTES_MAX, value, f"at most {ATTRIBUTES_MAX} attributes")
    for pair in value:
        require(type(pair) is tuple and len(pair) == 2, pair, "a pair of key and value")
        check_text(pair[0], "attribute", TEXT_CHARS_MAX)
        check_text(pair[1], "attribute value", TEXT_CHARS_MAX)
    require(list(value) == sorted(set(value)), value, "sorted attributes")


def _doi(value: Any) -> None:
    check_text(value, "DOI", TEXT_CHARS_MAX)
    require(_DOI.fullmatch(value) is not None, value, "a DOI")


_DOI = re.compile(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+", re.ASCII)
"""As Rucio's core/opendata.py checks it."""

METADATA: Mapping[str, Check] = {
    "events": _number(0, EVENTS_MAX),
    "guid": _bytes(GUID_BYTES),
    "project": _text(),
    "datatype": _text(),
    "run_number": _number(-NUMBER_MAX, NUMBER_MAX),
    "stream_name": _text(),
    "prod_step": _text(),
    "version": _text(),
    "campaign": _text(),
    "task_id": _number(-NUMBER_MAX, NUMBER_MAX),
    "panda_id": _number(-NUMBER_MAX, NUMBER_MAX),
    "lumiblocknr": _number(-NUMBER_MAX, NUMBER_MAX),
    "provenance": _text(),
    "phys_group": _text(),
    "transient": _flag(),
}
"""The metadata columns of Rucio's `dids` that are shared, by their names there.

Not shared, since they follow from what is: bytes, adler32, md5 (identity); length, and bytes and events of collections (content);
is_archive, constituent (constituents); availability, complete (replicas). Not shared, since they are each instance's
own: account, suppressed, is_new, purge_replicas, expired_at, eol_at, accessed_at, access_cnt, closed_at, deleted_at.
"""

_FACTS: Mapping[int, Check] = {
    SCOPE: _true("Scope"),
    DID: _identity,
    ATTACHMENT: _true("Attachment"),
    CONSTITUENT: _true("Constituent"),
    RSE: _true("Rse"),
    REPLICA: _text(PATH_CHARS_MAX, "path"),
}

_FIELDS: Mapping[tuple[int, str], Check] = {
    (SCOPE, ATTACHABLE): _flag(),
    (DID, CLOSED): _flag("true (closed) or false (open)"),
    (DID, MONOTONIC): _flag(),
    (DID, HIDDEN): _flag(),
    (DID, OBSOLETE): _flag(),
    (DID, OPENDATA): _one_of(PUBLIC, SUSPENDED),
    (DID, DOI): _doi,
    (DID, RECORD): _number(0, NUMBER_MAX),
    (DID, OPENDATA_META): check_json_object,
    **{(DID, name): check for name, check in METADATA.items()},
    (RSE, PROTOCOLS): _protocols,
    (RSE, ATTRIBUTES): _attributes,
    (REPLICA, STATE): _one_of(*STATES),
}


def check_value(key: tuple[Any, ...], value: Any) -> None:
    """Raises RejectedSegment for a value that nobody may assert about the checked wire key `key`."""
    tag = key[0]
    if tag != ATTRIBUTE:
        _FACTS[tag](value)
        return
    field, of = key[1], key[2]
    known = _FIELDS.get((of, field))
    if known is not None:
        known(value)
    elif of == DID and field.startswith(JSON_PREFIX):
        check_json(value)
    else:
        require(value is not None, value, f"a value of field {show(field)}")
        codec.check(value, f"field {show(field)}", depth=2)  # 2: it stands in a statement in an op


def typed(key: tuple[Any, ...], value: Any) -> Any:
    """The checked `value` with its parts named, where it has any."""
    if key[0] == DID:
        return Identity._make(value)
    if key[:3] == (ATTRIBUTE, PROTOCOLS, RSE):
        return tuple(Protocol._make(protocol) for protocol in value)
    return value
