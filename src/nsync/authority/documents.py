"""The charter's documents: JSON, as members sign it and files hold it (R5.1, docs/CHARTER.md).

Everything that can be wrong with one is a ConfigError that says what; a document that `check` has passed is a `Charter`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from nsync.authority.charter import ID_BYTES, AuthorId, Charter, FederationId, Incarnation, Instance, Member, Move, Place, Verify, author_id
from nsync.errors import ConfigError

FORMAT = 1
KEY_BYTES = 32
CHARTER_BYTES_MAX = 1 << 20
MEMBERS_MAX = 1000
INSTANCE_NAME = re.compile(r"[a-z](?:-?[a-z0-9])*")
"""Instance names become accounts (`nsync-<name>`, at most 25 characters) and RSE prefixes (`<NAME>_`)."""
INSTANCE_NAME_LENGTH_MAX = 19
PIN_BYTES = 32
PINS_MAX = 8
"""Of one instance: the key in use, the next one, and some more for several proxies."""


def draft(name: str, members: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An unsigned charter document; `members` as in the file (docs/CHARTER.md). Sign it with `sign`. Raises ConfigError."""
    document = {"charter": {"format": FORMAT, "name": name, "version": 1, "members": list(members)}, "signatures": {}}
    check(document)
    return document


def sign(document: dict[str, Any], key: Any) -> dict[str, Any]:
    """`document` with the signature of one more root key (a `nsync.auth.keys.SigningKey`) added. Raises ConfigError."""
    check(document)  # whoever signs must not find out after everybody else has signed
    with well_formed():
        if not any(key.public in _roots(member) for member in document["charter"]["members"]):
            raise ConfigError(f"charter: {key.public.hex()} is no member's root key; sign with a key that stands in a member's 'roots'")
    return with_signature(document, key)


def with_signature(document: dict[str, Any], key: Any) -> dict[str, Any]:
    """`document` with the signature of `key` added, whoever's it is. Raises ConfigError."""
    with well_formed():
        signature: bytes = key.sign("charter", signed_text(document["charter"]))
        return {**document, "signatures": {**document["signatures"], key.public.hex(): signature.hex()}}


def load(text: str, verify: Verify) -> Charter:
    """The charter in the JSON document `text`, every member's signatures checked. Raises ConfigError."""
    if len(text) > CHARTER_BYTES_MAX:
        raise ConfigError(f"charter is longer than {CHARTER_BYTES_MAX} bytes")
    with well_formed():
        document = json.loads(text)
    charter = check(document)
    missing = signers(charter, document, verify).missing
    if missing:
        raise ConfigError(f"charter: {'; '.join(missing)}; ask the root key holders to run 'nsync charter sign'")
    return charter


def check(document: Mapping[str, Any]) -> Charter:
    """What `document` says, whoever has signed it: all that can be wrong but the signatures. Raises ConfigError."""
    with well_formed():
        body = document["charter"]
        if body["format"] != FORMAT:
            raise ConfigError(f"charter has format {body['format']!r}; this nsync reads format {FORMAT}")
        members = body["members"]
        if not 1 <= len(members) <= MEMBERS_MAX:
            raise ConfigError(f"charter names {len(members)} members; 1 to {MEMBERS_MAX} are allowed")
        for member in members:
            _check_threshold(member)
        signed = signed_text(body)
        charter = Charter(
            name=str(body["name"]),
            version=int(body["version"]),
            federation=_federation(signed) if body["version"] == 1 else FederationId(_bytes(body["federation"], ID_BYTES)),
            instances=tuple(_instance(member["name"], entry) for member in members for entry in member["instances"]),
            members=tuple(Member(str(m["name"]), frozenset(_roots(m)), int(m["threshold"])) for m in members),
            threshold=int(body.get("threshold", len(members))),
            moves=tuple(Move(str(m["scopes"]), str(m["from"]), _places(m["finals"])) for m in body.get("moves", [])),
            hash=_federation(signed),
            revote_after=_number(body["revote_after"]) if "revote_after" in body else None,
        )
        if not 1 <= charter.threshold <= len(members):
            raise ConfigError(f"charter: threshold {charter.threshold} with {len(members)} members; amendments need 1 to all of them")
    _check_disjoint(charter)
    return charter


class Signers(NamedTuple):
    """Which members have signed a document."""

    signed: tuple[str, ...]
    """Their names."""
    missing: tuple[str, ...]
    """A text for each of the others."""


def signers(charter: Charter, document: Mapping[str, Any], verify: Verify) -> Signers:
    """Which members of `charter` have signed `document`, each with its threshold of the root keys listed there. Raises ConfigError."""
    signed, missing = [], []
    with well_formed():
        text, signatures = signed_text(document["charter"]), document["signatures"]
        for member in charter.members:
            good = sum(verify(root, "charter", text, bytes.fromhex(signatures.get(root.hex(), ""))) for root in member.roots)
            if good >= member.threshold:
                signed.append(member.name)
            else:
                missing.append(f"member {member.name!r} has {good} valid signatures of the {member.threshold} needed")
    return Signers(tuple(signed), tuple(missing))


@contextmanager
def well_formed() -> Iterator[None]:
    """Whatever a document of another form does to the code that reads it becomes a ConfigError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"charter is malformed: {type(error).__name__}: {error}; docs/CHARTER.md has the format") from error


def signed_text(body: Mapping[str, Any]) -> bytes:
    """What the root keys sign: the body as JSON in one form."""
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
        past=tuple(_incarnation(life) for life in entry.get("past", [])),
        retired=_place(entry["retired"]) if "retired" in entry else None,
        tls=_pins(name, str(entry["url"]), entry.get("tls", [])),
    )


def _pins(name: str, url: str, entry: Sequence[str]) -> tuple[bytes, ...]:
    if not isinstance(entry, list) or len(entry) > PINS_MAX:
        raise ConfigError(f"charter: instance {name!r} has 'tls' {entry!r}; it is a list of at most {PINS_MAX} pins")
    if entry and not url.startswith("https://"):
        raise ConfigError(f"charter: instance {name!r} has pins, and {url}, which is without TLS; its URL must start with https://")
    return tuple(_bytes(pin, PIN_BYTES) for pin in entry)


def _incarnation(life: Mapping[str, Any]) -> Incarnation:
    key = _bytes(life["key"], KEY_BYTES)
    return Incarnation(author_id(key, _bytes(life["incarnation"], ID_BYTES)), key, _place(life["final"]))


def _places(finals: Mapping[str, Any]) -> dict[AuthorId, Place]:
    return {AuthorId(_bytes(author, ID_BYTES)): _place(place) for author, place in finals.items()}


def _place(value: Sequence[Any]) -> Place:
    seq, header = value
    if type(seq) is not int or seq < 0:
        raise ConfigError(f"charter: {value!r} is no place in a log; it is [seq, hash of the segment's header]")
    return Place(seq, _bytes(header, ID_BYTES))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ConfigError(f"charter: {value!r} is no number of a floor")
    return value


def _bytes(text: str, length: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != length:
        raise ConfigError(f"charter: {text!r} is not {length} bytes in hexadecimal digits")
    return value


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
        ("author", [life.author.hex() for i in charter.instances for life in i.incarnations]),
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
    for move in charter.moves:
        if charter.by_name(move.home) is None:
            raise ConfigError(f"charter: scopes {move.prefix!r} moved from {move.home!r}, which is no instance")
    for instance in charter.instances:
        for guest, prefixes in instance.guests.items():
            if charter.by_name(guest) is None or guest == instance.name:
                raise ConfigError(f"charter: {instance.name} names the guest {guest!r}, who is no other instance")
            if not all(prefix.startswith(instance.scopes) for prefix in prefixes):
                raise ConfigError(f"charter: {instance.name} lets {guest} write below {prefixes}, which are not its own scopes")
