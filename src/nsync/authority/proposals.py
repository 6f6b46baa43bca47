"""Proposals: the next version of a charter, from what shall be different; and its signatures until it counts (docs/CHARTER.md).

A charter file is one document or a list: the genesis, then its amendments. The last of a list may be a *proposal*, which
too few have signed yet: to nodes it is as if it were not there, so the file can go round and be put in place at any time.

    edit                       what it says besides
    admit(member)              nothing: who comes has no past here
    retire(name, final)        where the log of the instance ends; it stays listed, and its history stays
    succeed(name, …, final)    where the incarnation before ended: a new key, a restored database
    move(prefix, to, finals)   up to where the old home decides, for every author
    revote(number)             floors above that number are voted for anew, by this version's members

Each is a function from one body to the next; `propose` numbers the result, and checks it as a node would.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple, Optional

from nsync.authority import amendments, documents
from nsync.authority.charter import AuthorId, Charter, Place, Verify
from nsync.errors import ConfigError

Document = dict[str, Any]
"""A charter document: what is signed, and the signatures."""

Edit = Callable[[Document], None]
"""Changes the body of a charter in its place. Raises ConfigError."""


class CharterFile(NamedTuple):
    """What a charter file holds."""

    charter: Charter
    """The charter in force; of a genesis that lacks signatures, what it says."""
    documents: tuple[Document, ...]
    """All of them, as in the file; the newest last."""
    proposal: Optional[Charter]
    """What the last document says, if it does not count yet."""
    missing: tuple[str, ...]
    """Whose signatures it lacks, one text for each member, after one that counts them."""
    is_list: bool

    @property
    def body(self) -> Document:
        """The body of the charter in force."""
        body: Document = next(d["charter"] for d in self.documents if documents.check(d).hash == self.charter.hash)
        return body

    def text(self) -> str:
        """The file."""
        value: Any = list(self.documents) if self.is_list else self.documents[0]
        return json.dumps(value, indent=2) + "\n"


def read(text: str, verify: Verify) -> CharterFile:
    """What the charter file `text` holds. Raises ConfigError, also where two amendments contradict each other."""
    with documents.well_formed():
        found = [json.loads(part) for part in amendments.parts(text)]
    is_list = text.lstrip().startswith("[")
    genesis, newest = documents.check(found[0]), documents.check(found[-1])
    amendments.check_genesis(genesis)
    missing = documents.signers(genesis, found[0], verify).missing
    if missing:
        if len(found) > 1:
            raise ConfigError(f"charter: the genesis is not signed by all: {'; '.join(missing)}")
        return CharterFile(genesis, tuple(found), genesis, missing, is_list)
    line = amendments.read(text, verify)
    if line.frozen is not None:
        raise ConfigError(f"charter: {line.frozen}")
    if newest.version <= line.charter.version:
        return CharterFile(line.charter, tuple(found), None, (), is_list)
    amendments.check_succession(line.charter, newest, found[-1])
    return CharterFile(line.charter, tuple(found), newest, tuple(_missing(line.charter, found[-1], verify)), is_list)


def sign(file: CharterFile, key: Any) -> CharterFile:
    """`file` with one more signature under what it proposes, by a root key (`nsync.auth.keys.SigningKey`). Raises ConfigError."""
    if file.proposal is None:
        raise ConfigError(f"charter: version {file.charter.version} is in force, and the file proposes nothing that could be signed")
    last = file.documents[-1]
    if file.proposal.version == 1:
        signed = documents.sign(last, key)
    else:
        if not any(key.public in member.roots for member in file.charter.members):
            raise ConfigError(
                f"charter: {key.public.hex()} is no root key of version {file.charter.version}, whose members decide about the next"
            )
        signed = documents.with_signature(last, key)
    return file._replace(documents=(*file.documents[:-1], signed))


def propose(file: CharterFile, edits: Iterable[Edit]) -> CharterFile:
    """`file` with a proposal for the next version, which nobody has signed. Raises ConfigError for one that could never count."""
    if file.proposal is not None:
        raise ConfigError(f"charter: the file proposes version {file.proposal.version} already; have it signed, or take it out")
    body = copy.deepcopy(file.body)
    body.update(version=file.charter.version + 1, federation=file.charter.federation.hex(), previous=file.charter.hash.hex())
    body.pop("revote_after", None)  # it is said once
    with documents.well_formed():
        for edit in edits:
            edit(body)
    document = {"charter": body, "signatures": {}}
    following = documents.check(document)
    amendments.check_succession(file.charter, following, document)
    return file._replace(documents=(*file.documents, document), proposal=following, is_list=True)


def _missing(charter: Charter, document: Mapping[str, Any], verify: Verify) -> list[str]:
    """How many of the members that version n names have signed n+1, and who has not; empty when enough have."""
    found = documents.signers(charter, document, verify)
    if len(found.signed) >= charter.threshold:
        return []
    return [f"{len(found.signed)} of the {charter.threshold} members needed have signed version {charter.version + 1}", *found.missing]


# ---- edits


def admit(member: Mapping[str, Any]) -> Edit:
    """A new member, or more instances of one; `member` as in the file."""

    def edit(body: Document) -> None:
        known = next((m for m in body["members"] if m["name"] == member["name"]), None)
        if known is None:
            body["members"].append(dict(member))
        elif (sorted(known["roots"]), known["threshold"]) != (sorted(member["roots"]), member["threshold"]):
            raise ConfigError(f"charter: {member['name']} is a member with other root keys; an entry with more instances names the same")
        else:
            known["instances"] += member["instances"]

    return edit


def retire(name: str, final: Place) -> Edit:
    """The instance `name` leaves; its log ends at `final`."""

    def edit(body: Document) -> None:
        _instance(body, name)["retired"] = _final(final)

    return edit


def succeed(name: str, key: str, incarnation: str, final: Place) -> Edit:
    """The instance `name` goes on as another author; the log of the one before ended at `final`."""

    def edit(body: Document) -> None:
        entry = _instance(body, name)
        ended = {"key": entry["key"], "incarnation": entry["incarnation"], "final": _final(final)}
        entry.update(key=key, incarnation=incarnation, past=[*entry.get("past", []), ended])

    return edit


def move(prefix: str, to: str, finals: Mapping[AuthorId, Place]) -> Edit:
    """The scopes below `prefix` get the home `to`; what stands at or before `finals` is judged by the old one."""

    def edit(body: Document) -> None:
        old = next((i for m in body["members"] for i in m["instances"] if prefix in i["scopes"]), None)
        if old is None:
            raise ConfigError(f"charter: no instance has the scope prefix {prefix!r}; 'nsync charter show' lists them")
        old["scopes"] = [scope for scope in old["scopes"] if scope != prefix]
        new = _instance(body, to)
        new["scopes"] = [*new["scopes"], prefix]
        ends = {author.hex(): _final(place) for author, place in sorted(finals.items())}
        body["moves"] = [*body.get("moves", []), {"scopes": prefix, "from": old["name"], "finals": ends}]

    return edit


def reach(name: str, url: str, pins: Iterable[str] = ()) -> Edit:
    """Peers reach the instance `name` at `url`, whose TLS key has one of `pins`."""

    def edit(body: Document) -> None:
        entry = _instance(body, name)
        entry.pop("tls", None)
        entry.update({"url": url, **({"tls": list(pins)} if pins else {})})

    return edit


def need(threshold: int) -> Edit:
    """So many members must sign an amendment from then on."""

    def edit(body: Document) -> None:
        body["threshold"] = threshold

    return edit


def revote(number: int) -> Edit:
    """The floors up to `number` stay; those above it are voted for anew."""

    def edit(body: Document) -> None:
        body["revote_after"] = number

    return edit


def _instance(body: Document, name: str) -> Document:
    for member in body["members"]:
        for entry in member["instances"]:
            if entry["name"] == name:
                found: Document = entry
                return found
    raise ConfigError(f"charter: it names no instance {name!r}")


def _final(place: Place) -> list[Any]:
    return [place.seq, place.hash.hex()]
