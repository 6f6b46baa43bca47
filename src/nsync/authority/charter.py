"""The charter: who the members are, which keys speak for them, and which scopes and DOIs are theirs (R5.1).

The genesis is signed by the threshold of root keys of *every* member; amendments follow it (`authority.amendments`), and both are
JSON documents (`authority.documents`). The federation id is the hash of the genesis' signed text, so two federations can never mix.

A charter carries its own history: past incarnations with the place where each ended, and scopes that moved with the heads up to
which their old home decides. So statements are judged by the newest charter alone; floors by the versions that they name (log.floor).

`guests` is a home's own word, in the charter, that another instance may write in scopes below a prefix. It acts as a grant in
everybody's past that is never revoked (docs/adr/0002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, NamedTuple, NewType, Optional

AuthorId = NewType("AuthorId", bytes)
"""16 bytes that name an author: the hash of (instance key, incarnation) (R4.6)."""

FederationId = NewType("FederationId", bytes)

Verify = Callable[[bytes, str, bytes, bytes], bool]
"""(public key, purpose, message, signature) → valid; `nsync.auth.keys.verify`."""

ID_BYTES = 16


def author_id(key: bytes, incarnation: bytes) -> AuthorId:
    """The id of the author that signs with `key` in `incarnation`."""
    return AuthorId(hashlib.blake2b(key + incarnation, digest_size=ID_BYTES, person=b"nsync author").digest())


class Place(NamedTuple):
    """A place in one author's log: the segment that ends at `seq` and whose header has this hash."""

    seq: int
    hash: bytes


class Incarnation(NamedTuple):
    """One life of an instance's log (R4.6)."""

    author: AuthorId
    key: bytes
    final: Optional[Place]
    """Where the log ended: what it says beyond, or on another branch, is void. None while it goes on."""


@dataclass(frozen=True)
class Instance:
    """One Rucio installation of a member organisation."""

    name: str
    member: str
    key: bytes
    incarnation: bytes
    url: str
    scopes: tuple[str, ...]
    """Prefixes of the scopes whose home it is."""
    dois: tuple[str, ...]
    """Prefixes of the DOIs that it decides about."""
    guests: Mapping[str, tuple[str, ...]]
    """Instance name → prefixes, below its own scopes, in which that instance may write too."""
    past: tuple[Incarnation, ...] = ()
    """Its ended incarnations, oldest first."""
    retired: Optional[Place] = None
    """Where the present incarnation ended, when the instance has left; its history stays."""
    tls: tuple[bytes, ...] = ()
    """Pins: each the SHA-256 of the SubjectPublicKeyInfo that its server may have (transport.tls)."""

    @property
    def author(self) -> AuthorId:
        return author_id(self.key, self.incarnation)

    @property
    def incarnations(self) -> tuple[Incarnation, ...]:
        """All of its lives, oldest first."""
        return (*self.past, Incarnation(self.author, self.key, self.retired))


class Member(NamedTuple):
    """An organisation and the root keys that sign for it."""

    name: str
    roots: frozenset[bytes]
    threshold: int


class Move(NamedTuple):
    """Scopes below `prefix` had the home `home`, up to the final heads that an amendment named."""

    prefix: str
    home: str
    finals: Mapping[AuthorId, Place]


class Era(NamedTuple):
    """Who decided about a scope, and up to where: what is under `until` is judged by this home."""

    home: Instance
    until: Optional[Mapping[AuthorId, Place]]
    """None for the present home."""


class Span(NamedTuple):
    """A stretch of one author's log, after < seq <= until."""

    author: AuthorId
    after: int
    until: Optional[int]
    era: int


@dataclass(frozen=True)
class Charter:
    """A verified charter. Make one with `load`."""

    name: str
    version: int
    federation: FederationId
    instances: tuple[Instance, ...]
    members: tuple[Member, ...] = ()
    threshold: int = 1
    """How many members must sign an amendment."""
    moves: tuple[Move, ...] = ()
    """Oldest first."""
    hash: bytes = b""
    """Of the signed text: what an amendment names as its predecessor."""
    revote_after: Optional[int] = None
    """Floors of higher numbers are voted for anew from this version on (log.floor)."""
    before: Optional[Charter] = field(default=None, compare=False, repr=False)
    """The version that this one follows; None of the genesis."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_author", {life.author: i for i in self.instances for life in i.incarnations})
        object.__setattr__(self, "_by_name", {i.name: i for i in self.instances})
        object.__setattr__(self, "_lives", {life.author: life for i in self.instances for life in i.incarnations})

    def by_author(self, author: bytes) -> Optional[Instance]:
        """The instance that `author` speaks for, or None for a stranger."""
        found: Optional[Instance] = self.__dict__["_by_author"].get(author)
        return found

    def by_name(self, name: str) -> Optional[Instance]:
        """The instance called `name`, or None."""
        found: Optional[Instance] = self.__dict__["_by_name"].get(name)
        return found

    def name_of(self, author: bytes) -> str:
        """The name of `author`'s instance; of a stranger the beginning of its id."""
        instance = self.by_author(author)
        return instance.name if instance is not None else author.hex()[:12]

    def life(self, author: bytes) -> Optional[Incarnation]:
        """The incarnation that `author` is, or None for a stranger."""
        found: Optional[Incarnation] = self.__dict__["_lives"].get(author)
        return found

    def voters(self) -> dict[str, Instance]:
        """The instance through which each member organisation is heard about forks: the first one that it lists (R4.5)."""
        found: dict[str, Instance] = {}
        for instance in self.instances:
            found.setdefault(instance.member, instance)
        return found

    def electors(self) -> dict[str, Instance]:
        """The instance through which each member organisation votes: the first one that it lists and has not retired (R4.8)."""
        found: dict[str, Instance] = {}
        for instance in self.instances:
            if instance.retired is None:
                found.setdefault(instance.member, instance)
        return found

    def versions(self) -> Iterator[Charter]:
        """This version and those before it, newest first."""
        version: Optional[Charter] = self
        while version is not None:
            yield version
            version = version.before

    def at(self, version: int) -> Optional[Charter]:
        """That version of the charter; None if it is not known here."""
        return next((charter for charter in self.versions() if charter.version == version), None)

    def revoted(self, number: int) -> int:
        """The first version whose votes for floor `number` count."""
        return next((c.version for c in self.versions() if c.revote_after is not None and c.revote_after < number), 1)

    def eras(self, scope: str) -> tuple[Era, ...]:
        """The homes that `scope` has had, oldest first."""
        found = [Era(self.__dict__["_by_name"][move.home], move.finals) for move in self.moves if scope.startswith(move.prefix)]
        home = self.home(scope)
        return (*found, Era(home, None)) if home is not None else tuple(found)

    def line(self, scope: str) -> tuple[Span, ...]:
        """The home's log of `scope`: incarnation after incarnation, home after home (R3.6, R4.6)."""
        return self._line(self.eras(scope))

    def doi_line(self, doi: str) -> tuple[Span, ...]:
        """The log of the instance that decides about `doi`."""
        home = self.doi_home(doi)
        return self._line((Era(home, None),) if home is not None else ())

    @staticmethod
    def _line(eras: Sequence[Era]) -> tuple[Span, ...]:
        spans = []
        before: Mapping[AuthorId, Place] = {}
        for index, era in enumerate(eras):
            for life in era.home.incarnations:
                after = before[life.author].seq if life.author in before else 0
                ends = [] if life.final is None else [life.final.seq]
                if era.until is not None:
                    ends.append(era.until[life.author].seq if life.author in era.until else 0)
                until = min(ends, default=None)
                if until is None or after < until:
                    spans.append(Span(life.author, after, until, index))
            before = era.until or {}
        return tuple(spans)

    def home(self, scope: str) -> Optional[Instance]:
        """The one instance that owns `scope`, or None when the charter delegates it to nobody (R5.2)."""
        return next((i for i in self.instances if scope.startswith(i.scopes)), None) if scope else None

    def doi_home(self, doi: str) -> Optional[Instance]:
        """The instance that decides who bears `doi`, or None when its prefix is delegated to nobody."""
        return next((i for i in self.instances if doi.upper().startswith(tuple(p.upper() for p in i.dois))), None)

    def may_write(self, instance: Instance, scope: str) -> bool:
        """Whether statements of `instance` about `scope` count: it is the home, or the home's guest."""
        home = self.home(scope)
        return home is not None and (home.name == instance.name or scope.startswith(home.guests.get(instance.name, ())))
