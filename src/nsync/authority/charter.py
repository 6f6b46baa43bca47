"""The charter: who the members are, which keys speak for them, and which scopes and DOIs are theirs (R5.1).

A JSON file: the genesis, signed by the threshold of root keys of *every* member. The federation id is the hash of the
signed text, so two federations can never mix. Everything here is a pure function of the file: signatures are checked
through the `verify` that the caller passes in.

Amendments and grants in the home's log are not here yet. What stands in for grants is `guests`: a home's own word, in
the charter, that another instance may write in scopes below a prefix. It acts as a grant in everybody's past that is
never revoked (docs/adr/0002).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, NewType, Optional

from nsync.errors import ConfigError

AuthorId = NewType("AuthorId", bytes)
"""16 bytes that name an author: the hash of (instance key, incarnation) (R4.6)."""

FederationId = NewType("FederationId", bytes)

Verify = Callable[[bytes, str, bytes, bytes], bool]
"""(public key, purpose, message, signature) → valid; `nsync.auth.keys.verify`."""

FORMAT = 1
ID_BYTES = 16
KEY_BYTES = 32
CHARTER_BYTES_MAX = 1 << 20
MEMBERS_MAX = 1000
INSTANCE_NAME = re.compile(r"[a-z](?:-?[a-z0-9])*")
"""Instance names become accounts (`nsync-<name>`, at most 25 characters) and RSE prefixes (`<NAME>_`)."""
INSTANCE_NAME_LENGTH_MAX = 19


def author_id(key: bytes, incarnation: bytes) -> AuthorId:
    """The id of the author that signs with `key` in `incarnation`."""
    return AuthorId(hashlib.blake2b(key + incarnation, digest_size=ID_BYTES, person=b"nsync author").digest())


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

    @property
    def author(self) -> AuthorId:
        return author_id(self.key, self.incarnation)


@dataclass(frozen=True)
class Charter:
    """A verified charter. Make one with `load`."""

    name: str
    version: int
    federation: FederationId
    instances: tuple[Instance, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_author", {i.author: i for i in self.instances})
        object.__setattr__(self, "_by_name", {i.name: i for i in self.instances})

    def by_author(self, author: bytes) -> Optional[Instance]:
        """The instance that `author` speaks for, or None for a stranger."""
        found: Optional[Instance] = self.__dict__["_by_author"].get(author)
        return found

    def by_name(self, name: str) -> Optional[Instance]:
        """The instance called `name`, or None."""
        found: Optional[Instance] = self.__dict__["_by_name"].get(name)
        return found

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


def draft(name: str, members: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An unsigned charter document; `members` as in the file (docs/CHARTER.md). Sign it with `sign`. Raises ConfigError."""
    document = {"charter": {"format": FORMAT, "name": name, "version": 1, "members": list(members)}, "signatures": {}}
    check(document)
    return document


def sign(document: dict[str, Any], key: Any) -> dict[str, Any]:
    """`document` with the signature of one more root key (a `nsync.auth.keys.SigningKey`) added. Raises ConfigError."""
    check(document)  # whoever signs must not find out after everybody else has signed
    with _well_formed():
        if not any(key.public in _roots(member) for member in document["charter"]["members"]):
            raise ConfigError(f"charter: {key.public.hex()} is no member's root key; sign with a key that stands in a member's 'roots'")
        signature: bytes = key.sign("charter", _signed_text(document["charter"]))
        return {**document, "signatures": {**document["signatures"], key.public.hex(): signature.hex()}}


def load(text: str, verify: Verify) -> Charter:
    """The charter in the JSON document `text`, every member's signatures checked. Raises ConfigError."""
    if len(text) > CHARTER_BYTES_MAX:
        raise ConfigError(f"charter is longer than {CHARTER_BYTES_MAX} bytes")
    with _well_formed():
        document = json.loads(text)
    charter = check(document)
    missing = missing_signatures(document, verify)
    if missing:
        raise ConfigError(f"charter: {'; '.join(missing)}; ask the root key holders to run 'nsync charter sign'")
    return charter


def check(document: Mapping[str, Any]) -> Charter:
    """What `document` says, whoever has signed it: all that can be wrong but the signatures. Raises ConfigError."""
    with _well_formed():
        body = document["charter"]
        if body["format"] != FORMAT:
            raise ConfigError(f"charter has format {body['format']!r}; this nsync reads format {FORMAT}")
        members = body["members"]
        if not 1 <= len(members) <= MEMBERS_MAX:
            raise ConfigError(f"charter names {len(members)} members; 1 to {MEMBERS_MAX} are allowed")
        for member in members:
            _check_threshold(member)
        instances = tuple(_instance(member["name"], entry) for member in members for entry in member["instances"])
        charter = Charter(str(body["name"]), int(body["version"]), _federation(_signed_text(body)), instances)
    _check_disjoint(charter)
    return charter


def missing_signatures(document: Mapping[str, Any], verify: Verify) -> list[str]:
    """Whose signatures `document`, which `check` has passed, still lacks; empty when every member has signed. Raises ConfigError."""
    with _well_formed():
        body, signatures = document["charter"], document["signatures"]
        signed, missing = _signed_text(body), []
        for member in body["members"]:
            good = sum(verify(root, "charter", signed, bytes.fromhex(signatures.get(root.hex(), ""))) for root in sorted(_roots(member)))
            if good < member["threshold"]:
                missing.append(f"member {member['name']!r} has {good} valid signatures of the {member['threshold']} needed")
    return missing


@contextmanager
def _well_formed() -> Iterator[None]:
    """Whatever a document of another form does to the code that reads it becomes a ConfigError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"charter is malformed: {type(error).__name__}: {error}; docs/CHARTER.md has the format") from error


def _signed_text(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _federation(signed: bytes) -> FederationId:
    return FederationId(hashlib.blake2b(signed, digest_size=ID_BYTES, person=b"nsync charter").digest())


def _roots(member: Mapping[str, Any]) -> set[bytes]:
    """A root key counts once, however it is written."""
    return {bytes.fromhex(root) for root in member["roots"]}


def _check_threshold(member: Mapping[str, Any]) -> None:
    count = len(_roots(member))
    if not 1 <= member["threshold"] <= count:
        raise ConfigError(f"charter: member {member['name']!r} has threshold {member['threshold']} with {count} root keys")


def _instance(member: str, entry: Mapping[str, Any]) -> Instance:
    name = entry["name"]
    if not INSTANCE_NAME.fullmatch(name) or len(name) > INSTANCE_NAME_LENGTH_MAX:
        raise ConfigError(f"charter: instance name {name!r} is not 1 to {INSTANCE_NAME_LENGTH_MAX} of [a-z0-9-] starting with a letter")
    key, incarnation = bytes.fromhex(entry["key"]), bytes.fromhex(entry["incarnation"])
    if len(key) != KEY_BYTES or len(incarnation) != ID_BYTES:
        raise ConfigError(f"charter: instance {name!r} needs a key of {KEY_BYTES} bytes and an incarnation of {ID_BYTES}")
    if not str(entry["url"]).startswith(("http://", "https://")):
        raise ConfigError(f"charter: instance {name!r} has URL {entry['url']!r}; it must start with http:// or https://")
    return Instance(
        name=name,
        member=str(member),
        key=key,
        incarnation=incarnation,
        url=str(entry["url"]).rstrip("/"),
        scopes=_prefixes(entry["scopes"]),
        dois=_prefixes(entry.get("dois", [])),
        guests={str(guest): _prefixes(prefixes) for guest, prefixes in entry.get("guests", {}).items()},
    )


def _prefixes(values: Iterable[Any]) -> tuple[str, ...]:
    prefixes = tuple(values)
    if not all(isinstance(p, str) and p for p in prefixes):
        raise ConfigError(f"charter: prefixes must be non-empty strings, not {prefixes!r}")
    return prefixes


def _check_disjoint(charter: Charter) -> None:
    """Names and keys are unique, and no prefix lies within another's: so every scope has one home at most."""
    for what, values in (
        ("instance name", [i.name for i in charter.instances]),
        ("instance key", [i.key.hex() for i in charter.instances]),
    ):
        for value in {v for v in values if values.count(v) > 1}:
            raise ConfigError(f"charter: {what} {value} stands twice")
    for what, owned in (
        ("scope", [(p, i.name) for i in charter.instances for p in i.scopes]),
        ("DOI", [(p.upper(), i.name) for i in charter.instances for p in i.dois]),
    ):
        prefix, owner = None, ""
        for longer, other in sorted(owned):  # what lies within a prefix comes right after it
            if prefix is None or not longer.startswith(prefix):
                prefix, owner = longer, other
            elif owner != other:
                raise ConfigError(
                    f"charter: {what} prefix {longer!r} of {other} lies within {prefix!r} of {owner}; prefixes must be disjoint"
                )
    for instance in charter.instances:
        for guest, prefixes in instance.guests.items():
            if charter.by_name(guest) is None or guest == instance.name:
                raise ConfigError(f"charter: {instance.name} names the guest {guest!r}, who is no other instance")
            if not all(prefix.startswith(instance.scopes) for prefix in prefixes):
                raise ConfigError(f"charter: {instance.name} lets {guest} write below {prefixes}, which are not its own scopes")
