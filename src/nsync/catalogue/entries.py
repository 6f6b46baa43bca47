"""What the catalogue shows: one entry a fact, and the conflicts that its rules leave behind."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional, Union

from nsync.clock import Stamp
from nsync.crdt import Dot, Slot
from nsync.namespace import fields
from nsync.namespace.fields import Identity, Protocol
from nsync.namespace.keys import Fact


class ScopeEntry(NamedTuple):
    """A shared scope and its home instance. `marks` are the statements by which it is not attachable (R5.5)."""

    home: str
    marks: tuple[Dot, ...] = ()


class DidEntry(NamedTuple):
    """A shared DID. `origin` is the instance whose claim gave the identity. `closed` is None for files.

    `meta` holds what stands of Rucio's metadata columns and of the keys of the JSON metadata, sorted. `content` is "" but for a
    container: the types that stand in it, "D" or "C"; of two letters the first one is shown, and the other hides (6.1).
    """

    identity: Identity
    origin: str
    closed: Optional[bool]
    opendata: Optional[str]
    doi: Optional[str]
    record: Optional[int] = None
    opendata_meta: Optional[str] = None
    monotonic: bool = False
    hidden: bool = False
    obsolete: bool = False
    meta: tuple[tuple[str, Any], ...] = ()
    content: str = ""


class AttachmentEntry(NamedTuple):
    """A shown attachment."""


class ConstituentEntry(NamedTuple):
    """A file shown in an archive."""


class RseEntry(NamedTuple):
    """A storage element that its instance lends for reading."""

    protocols: tuple[Protocol, ...]
    attributes: tuple[tuple[str, str], ...]


class ReplicaEntry(NamedTuple):
    """A shown replica; `path` lies below the prefix of its RSE's protocols."""

    path: str
    state: str = fields.AVAILABLE


Entry = Union[ScopeEntry, DidEntry, AttachmentEntry, ConstituentEntry, RseEntry, ReplicaEntry]


class Conflict(NamedTuple):
    """What a rule took away, and what resolves it. Winner and loser are texts: `instance: value`."""

    rule: str
    winner: str
    loser: str
    resolve: str
    stamps: str = ""
    """When they were said, by their authors' clocks: `winner …, loser …`; without the winner where it is no single statement."""


def stamps_of(winner: Optional[Slot], loser: Slot) -> str:
    """The stamps of two statements as a conflict tells them."""
    said = f"loser {time_of(loser.stamp)}"
    return said if winner is None else f"winner {time_of(winner.stamp)}, {said}"


def time_of(stamp: Stamp) -> str:
    """A stamp as text: UTC, and the logical part where there is one; milliseconds where the year has no four digits."""
    try:
        text = datetime.fromtimestamp(stamp.ms // 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + f".{stamp.ms % 1000:03}Z"
    except (OverflowError, ValueError, OSError):
        text = f"{stamp.ms} ms"
    return f"{text}+{stamp.logical}" if stamp.logical else text


_KINDS: dict[int, type] = {
    fields.SCOPE: ScopeEntry,
    fields.DID: DidEntry,
    fields.ATTACHMENT: AttachmentEntry,
    fields.CONSTITUENT: ConstituentEntry,
    fields.RSE: RseEntry,
    fields.REPLICA: ReplicaEntry,
}


def entry_from_wire(fact: Fact, wire: tuple[Any, ...]) -> Entry:
    """The entry of `fact` that was written as the plain tuples `wire`."""
    entry: Entry = _KINDS[fact[0]](*wire)
    if isinstance(entry, DidEntry):
        return entry._replace(identity=Identity(*entry.identity))
    if isinstance(entry, ScopeEntry):
        return entry._replace(marks=tuple(Dot(*mark) for mark in entry.marks))
    if isinstance(entry, RseEntry):
        return entry._replace(protocols=tuple(Protocol(*protocol) for protocol in entry.protocols))
    return entry
