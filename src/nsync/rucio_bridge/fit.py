"""Whether entries fit this Rucio instance (R7.6): each check says what is wrong, with what, and what resolves it.

What does not fit is parked, never dropped and never forced: local rows win over remote words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Optional

from jsonschema.validators import validator_for
from rucio.common.schema import get_schema_value
from rucio.common.types import InternalScope
from rucio.db.sqla import models
from sqlalchemy import select
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry, Entry, ReplicaEntry, RseEntry
from nsync.namespace.keys import Did, Fact, Replica, Rse, Scope, ends_of
from nsync.rucio_bridge.rows import DOIS, SCOPES, Rows, matches
from nsync.store import schema
from nsync.store.database import chunks

RSE_NAME_CHARS_MAX = 255
PROTOCOL_CLASS = re.compile(r"rucio\.rse\.protocols\.[a-z0-9_]+\.[A-Z][A-Za-z0-9_]*")
"""Rucio imports a protocol's implementation by its name: a remote word may only name a class in one of Rucio's own modules."""
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
HOSTNAME = re.compile(r"(?:[A-Za-z0-9_\[][A-Za-z0-9_.:\]-]*)?")
"""A scheme and a host, and nothing that a tool to which Rucio hands the URL could take for an option."""

Desired = Mapping[Fact, Optional[Entry]]
Actual = Mapping[Fact, Entry]


@cache
def _allowed(what: str) -> Any:
    """The validator of this Rucio's schema for a scope, name or RSE: made once, since `validate_schema` takes a millisecond a name."""
    schema = get_schema_value(what.upper())
    return validator_for(schema)(schema)


def account_of(instance: str) -> str:
    """The account that owns here what `instance` shares."""
    return f"nsync-{instance}"


def is_home(authority: Authority, instance: str, did: Did) -> bool:
    """Whether `did` lies in a scope of `instance`."""
    home = authority.charter.home(did.scope)
    return home is not None and home.name == instance


def rse_name(rse: Rse) -> str:
    """The name under which a foreign RSE stands here."""
    return f"{rse.instance.upper()}_{rse.rse}"


class Fit:
    """The checks of one transaction."""

    def __init__(self, session: Session, rows: Rows, authority: Authority, instance: str) -> None:
        self.session = session
        self.rows = rows
        self.authority = authority
        self.instance = instance

    def reasons(self, desired: Desired, actual: Actual) -> dict[Fact, str]:
        """Why entries cannot be written here; nothing for those that can."""
        new = {fact: entry for fact, entry in desired.items() if entry is not None and not matches(entry, actual.get(fact))}
        dois = self._doi_bearers({e.doi for e in new.values() if isinstance(e, DidEntry) and e.doi is not None})
        found: dict[Fact, str] = {}
        for fact, entry in new.items():
            reason = self._reason(fact, entry, actual.get(fact), dois, desired)
            if reason is not None:
                found[fact] = reason
        found.update(self._dangling(new, found, desired))
        return found

    def _reason(self, fact: Fact, entry: Entry, row: Optional[Entry], dois: Mapping[str, Did], desired: Desired) -> Optional[str]:
        if isinstance(fact, (Scope, Did)):
            reason = self._name_reason(fact)
            if reason is not None:
                return reason
        if isinstance(fact, Did) and isinstance(entry, DidEntry):
            return self._did_reason(fact, entry, row, dois, desired)
        if isinstance(fact, Replica) and isinstance(entry, ReplicaEntry):
            return _path_reason(entry.path)
        if isinstance(fact, Rse) and isinstance(entry, RseEntry) and fact.instance != self.instance:
            return self._rse_reason(fact, entry)
        return None

    def _name_reason(self, fact: Fact) -> Optional[str]:
        parts = {"scope": fact.scope, "name": fact.name} if isinstance(fact, Did) else {"scope": getattr(fact, "scope", "")}
        for what, value in parts.items():
            width = get_schema_value(f"{what.upper()}_LENGTH")
            if len(value) > width:
                return f"{what} {value[:60]!r}… has {len(value)} characters; this Rucio's schema holds {width}"
            if any(part in (".", "..") for part in value.split("/")):
                return f"{what} {value!r} names a path outside of its directory; its home must rename it"
            if not _allowed(what).is_valid(value):
                return f"{what} {value!r} is not allowed by this Rucio's schema (policy package); its home must rename it"
        return None

    def _scope_owners(self, scopes: Collection[str]) -> dict[str, str]:
        found = {}
        for chunk in chunks([InternalScope(scope) for scope in sorted(scopes)]):
            for row in self.session.execute(select(SCOPES.c.scope, SCOPES.c.account).where(SCOPES.c.scope.in_(chunk))):
                found[row.scope.external] = row.account.external
        return found

    def closed_off(self, facts: Collection[Fact]) -> dict[Fact, str]:
        """Those of `facts` that touch a private scope of this Rucio which has the name of a foreign one, and why.

        Whatever a remote says about it, nothing there is written, removed, or taken for the remote's, also where rows agree.
        """
        scopes = {scope for fact in facts for scope in _scopes(fact)}
        shared = self._shared_scopes()
        reasons = {}
        for scope, owner in self._scope_owners(scopes).items():
            home = self.authority.charter.home(scope)
            if home is not None and home.name != self.instance and owner != account_of(home.name) and scope not in shared:
                reasons[scope] = (
                    f"scope {scope!r} of {home.name} exists here too, and belongs to account {owner!r}: a private scope of the same "
                    f"name; if it is meant to be {home.name}'s, give it to account {account_of(home.name)!r} ('rucio scope update'), "
                    "else this stays parked"
                )
        return {fact: reasons[scope] for fact in facts for scope in _scopes(fact) if scope in reasons}

    def _shared_scopes(self) -> set[str]:
        """Scopes that the operator shares are no private ones."""
        return set(self.session.execute(select(schema.shared_scope.c.scope)).scalars())

    def _did_reason(self, did: Did, entry: DidEntry, row: Optional[Entry], dois: Mapping[str, Did], desired: Desired) -> Optional[str]:
        if isinstance(row, DidEntry) and not row.identity.agrees(entry.identity):
            return (
                f"{did} exists here as {row.identity}, and is {entry.identity} in the shared namespace (first at {entry.origin}); "
                "erase the local one, or keep it and leave this parked"
            )
        bearer = dois.get(entry.doi or "")
        if bearer is None or bearer == did or self._gives_up_doi(bearer, entry.doi, desired):
            return None
        return f"DOI {entry.doi} is {did} in the shared namespace, and belongs to {bearer} here; give {bearer} another DOI"

    def _gives_up_doi(self, did: Did, doi: Optional[str], desired: Desired) -> bool:
        """Whether the row of `did` loses `doi` in this very transaction, which frees it."""
        entry = desired.get(did)
        keeps = did not in desired or (isinstance(entry, DidEntry) and entry.doi == doi)
        return not keeps and not is_home(self.authority, self.instance, did)

    def _doi_bearers(self, dois: Collection[str]) -> dict[str, Did]:
        found = {}
        for chunk in chunks(sorted(dois)):
            for row in self.session.execute(select(DOIS.c.doi, DOIS.c.scope, DOIS.c.name).where(DOIS.c.doi.in_(chunk))):
                found[row.doi] = Did(row.scope.external, row.name)
        return found

    def _rse_reason(self, fact: Rse, entry: RseEntry) -> Optional[str]:
        name = rse_name(fact)
        if not _allowed("rse").is_valid(name):
            return f"RSE name {name!r} is not allowed by this Rucio's schema; {fact.instance} must rename its RSE {fact.rse!r}"
        if len(name) > RSE_NAME_CHARS_MAX:
            return f"RSE name {name[:60]!r}… has {len(name)} characters; Rucio holds {RSE_NAME_CHARS_MAX}"
        for protocol in entry.protocols:
            if PROTOCOL_CLASS.fullmatch(protocol.impl) is None:
                return (
                    f"{fact} wants the protocol implementation {protocol.impl!r}; only classes of rucio.rse.protocols are taken from a peer"
                )
            if SCHEME.fullmatch(protocol.scheme) is None or HOSTNAME.fullmatch(protocol.hostname) is None:
                return f"{fact} has a protocol at {protocol.scheme!r} {protocol.hostname!r}, which is no scheme and host"
        taken = self.session.execute(select(models.RSE.id).where(models.RSE.rse == name)).first()
        if taken is not None and self.rows.rse_of(fact) is None:
            return f"an RSE called {name!r} exists here and is not {fact.instance}'s; rename it"
        return None

    def _dangling(self, new: Desired, found: Mapping[Fact, str], desired: Desired) -> dict[Fact, str]:
        """Attachments and replicas whose DID or RSE is not here because it is parked: they wait with it (by key, R7.6)."""
        needs = {fact: ends_of(fact) for fact in new if fact not in found}
        wanted = {need for facts in needs.values() for need in facts}
        here = self.rows.read([need for need in wanted if desired.get(need) is None])
        waits: dict[Fact, str] = {}
        for fact, facts in needs.items():
            lacking = next((n for n in facts if n in found or (desired.get(n) is None and n not in here)), None)
            if lacking is not None:
                waits[fact] = f"waits for {lacking}, which is not in this Rucio"
        return waits


def _scopes(fact: Fact) -> set[str]:
    """The scopes in whose rows a fact is written."""
    dids = {fact} if isinstance(fact, Did) else {end for end in ends_of(fact) if isinstance(end, Did)}
    return {fact.scope} if isinstance(fact, Scope) else {did.scope for did in dids}


def _path_reason(path: str) -> Optional[str]:
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return f"path {path!r} does not lie below its RSE's prefix; its instance must mend the replica"
    return None
