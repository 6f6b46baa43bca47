"""Amendments: from one version of the charter to the next (R5.1).

Version n+1 names version n and is signed by that version's threshold of members, each with its own threshold of the root keys
that version n lists. Two valid successors of one version freeze the charter there: no member has to guess which one to
follow, and nothing that a thief of keys signs later can count. What an amendment takes away it must say: a scope that leaves
its home, a key that is replaced and an instance that retires come with the heads up to which the old state decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Optional

from nsync.authority.charter import Charter, Instance, Verify
from nsync.authority.documents import CHARTER_BYTES_MAX, check, load, signers, well_formed
from nsync.errors import ConfigError

FILE_BYTES_MAX = 64 * CHARTER_BYTES_MAX
"""Of a charter file: some dozens of versions of the greatest size."""


class Line(NamedTuple):
    """The charter as far as it is decided."""

    charter: Charter
    frozen: Optional[str]
    """Why no amendment of it can count any more: two of them are validly signed. None in the normal case."""


def line(genesis: str, amendments: Iterable[str], verify: Verify) -> Line:
    """The newest charter that `genesis` and `amendments`, in any order, add up to. Raises ConfigError for a bad genesis."""
    first = load(genesis, verify)
    check_genesis(first)
    return follow(first, amendments, verify)


def read(text: str, verify: Verify) -> Line:
    """What a charter file says: one document that every member signed, or a list of such a one and its amendments."""
    first, *rest = parts(text)
    return line(first, rest, verify)


def go_on(charter: Charter, text: str, verify: Verify) -> Charter:
    """The charter of the file `text`, where `charter` is in force. Raises ConfigError unless it is the same or goes on from it."""
    configured = read(text, verify).charter
    if configured.federation != charter.federation:
        raise ConfigError(
            f"charter: the file is of federation {configured.federation.hex()}; this database is of {charter.federation.hex()}"
        )
    if configured.version < charter.version:
        raise ConfigError(
            f"charter: the file has version {configured.version}; version {charter.version} is in force here, and never goes back"
        )
    if follow(charter, parts(text), verify).charter.hash != configured.hash:
        raise ConfigError(
            f"charter: version {configured.version} in the file does not go on from version {charter.version} ({charter.hash.hex()}), "
            "which is in force here; the file should list every amendment since"
        )
    return configured


def follow(charter: Charter, amendments: Iterable[str], verify: Verify) -> Line:
    """The newest charter that `amendments`, in any order, make of `charter`."""
    texts = list(amendments)
    while True:
        found = {}
        for text in texts:
            try:
                following = succeed(charter, text, verify)
            except ConfigError:
                continue  # of another version, or not validly signed: it counts for nothing
            found[following.hash] = following
        if len(found) > 1:
            hashes = " and ".join(sorted(found_hash.hex() for found_hash in found))
            return Line(
                charter,
                f"version {charter.version + 1} exists twice, {hashes}, both validly signed: the charter stays at {charter.version}",
            )
        if not found:
            return Line(charter, None)
        charter = found.popitem()[1]


def succeed(charter: Charter, text: str, verify: Verify) -> Charter:
    """The charter that the amendment in `text` makes of `charter`. Raises ConfigError when it is no valid successor."""
    if len(text) > CHARTER_BYTES_MAX:
        raise ConfigError(f"amendment is longer than {CHARTER_BYTES_MAX} bytes")
    with well_formed():
        document = json.loads(text)
    following = check(document)
    check_succession(charter, following, document)
    _check_signed(charter, document, verify)
    return replace(following, before=charter)


def parts(text: str) -> list[str]:
    """The documents of the charter file `text`. Raises ConfigError."""
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"charter: the file is longer than {FILE_BYTES_MAX} bytes")
    with well_formed():
        found = json.loads(text)
        if not isinstance(found, list):
            return [text]
        if not found:
            raise ConfigError("charter: the file holds an empty list; the genesis comes first, then its amendments")
        return [json.dumps(document) for document in found]


def check_genesis(charter: Charter) -> None:
    """Raises ConfigError unless `charter` is a first version: what comes later is believed for the one before it."""
    if charter.version != 1:
        raise ConfigError(f"charter: the file begins with version {charter.version}; the genesis comes first, then its amendments")


def check_succession(charter: Charter, following: Charter, document: Mapping[str, Any]) -> None:
    """Raises ConfigError unless `document`, which says `following`, may come after `charter`, whoever has signed it."""
    body = document["charter"]
    if following.version != charter.version + 1 or following.federation != charter.federation:
        raise ConfigError(f"amendment: it is version {following.version} of another line; version {charter.version + 1} comes next")
    if body.get("previous") != charter.hash.hex():
        raise ConfigError(
            f"amendment: version {following.version} does not name version {charter.version} ({charter.hash.hex()}) as 'previous'"
        )
    if following.moves[: len(charter.moves)] != charter.moves:
        raise ConfigError("amendment: it changes scopes that moved before; 'moves' may only be added to")
    moved = following.moves[len(charter.moves) :]
    for instance in charter.instances:
        _check_instance(instance, following.by_name(instance.name))
        for prefix in instance.scopes:
            kept = following.home(prefix)
            if (kept is None or kept.name != instance.name) and not any(m.prefix == prefix and m.home == instance.name for m in moved):
                raise ConfigError(f"amendment: scopes {prefix!r} leave {instance.name} without final heads; add them to 'moves'")


def _check_instance(before: Instance, after: Optional[Instance]) -> None:
    if after is None or after.member != before.member:
        raise ConfigError(f"amendment: instance {before.name} is gone; one that leaves stays listed, with 'retired'")
    if before.retired is not None and after.retired != before.retired:
        raise ConfigError(f"amendment: {before.name} has retired at {before.retired.seq}; that cannot change")
    ended = after.past[: len(before.past)]
    if ended != before.past:
        raise ConfigError(f"amendment: it changes how earlier incarnations of {before.name} ended")
    if after.author != before.author and [life.author for life in after.past[len(before.past) :]] != [before.author]:
        raise ConfigError(f"amendment: {before.name} gets another key or incarnation; 'past' must name where the present one ended")
    lost = {guest for guest, prefixes in before.guests.items() if not set(prefixes) <= set(after.guests.get(guest, ()))}
    if lost:
        raise ConfigError(
            f"amendment: {before.name} shuts out its guests {sorted(lost)}; what they wrote would be void: revoke grants instead"
        )


def _check_signed(charter: Charter, document: Mapping[str, Any], verify: Verify) -> None:
    """Enough members of `charter` signed, each by its root keys of that version."""
    signed = signers(charter, document, verify).signed
    if len(signed) < charter.threshold:
        raise ConfigError(
            f"amendment: {len(signed)} of the {charter.threshold} members needed have signed ({', '.join(signed) or 'none'}); "
            f"the root key holders of version {charter.version} run 'nsync charter sign'"
        )
