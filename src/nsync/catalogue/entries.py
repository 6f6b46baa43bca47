"""What the catalogue shows: one entry a fact, and the conflicts that its rules leave behind."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from nsync.namespace.keys import Identity, Protocol

VERSION = 1
"""Of the rules. Another version recomputes every entry."""


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
