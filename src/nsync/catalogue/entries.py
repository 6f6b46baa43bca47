"""What the catalogue shows: one entry a fact, and the conflicts that its rules leave behind."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

from nsync.namespace.keys import Fact, Identity, Protocol, to_wire


class ScopeEntry(NamedTuple):
    """A shared scope and its home instance."""

    home: str


class DidEntry(NamedTuple):
    """A shared DID. `origin` is the instance whose claim gave the identity. `closed` is None for files."""

    identity: Identity
    origin: str
    closed: Optional[bool]
    opendata: Optional[str]
    doi: Optional[str]


class AttachmentEntry(NamedTuple):
    """A shown attachment."""


class RseEntry(NamedTuple):
    """A storage element that its instance lends for reading."""

    protocols: tuple[Protocol, ...]
    attributes: tuple[tuple[str, str], ...]


class ReplicaEntry(NamedTuple):
    """A shown replica; `path` lies below the prefix of its RSE's protocols."""

    path: str


Entry = Union[ScopeEntry, DidEntry, AttachmentEntry, RseEntry, ReplicaEntry]


class Conflict(NamedTuple):
    """What a rule took away, and what resolves it. Winner and loser are texts: `instance: value`."""

    rule: str
    winner: str
    loser: str
    resolve: str


_KINDS: dict[int, type] = {1: ScopeEntry, 2: DidEntry, 3: AttachmentEntry, 5: RseEntry, 6: ReplicaEntry}
"""By the tag of the fact's key."""


def plain(value: Any) -> Any:
    """Named tuples as plain tuples, for the codec."""
    return tuple(plain(item) for item in value) if isinstance(value, tuple) else value


def entry_from_wire(fact: Fact, wire: tuple[Any, ...]) -> Entry:
    """The entry of `fact` that `plain` made `wire` from."""
    entry: Entry = _KINDS[to_wire(fact)[0]](*wire)
    if isinstance(entry, DidEntry):
        return entry._replace(identity=Identity(*entry.identity))
    if isinstance(entry, RseEntry):
        return entry._replace(protocols=tuple(Protocol(*protocol) for protocol in entry.protocols))
    return entry
