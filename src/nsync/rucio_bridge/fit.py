"""Whether entries fit this Rucio instance (R7.6): each check says what is wrong, with what, and what resolves it.

What does not fit is parked, never dropped and never forced: local rows win over remote words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache
from typing import Any, Optional

from rucio.common.types import InternalScope
from rucio.db.sqla import models
from sqlalchemy import select
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry, Entry, RseEntry
from nsync.namespace import fields
from nsync.namespace.keys import Did, Fact, Protocol, Rse
from nsync.rucio_bridge import accounts, metadata
from nsync.rucio_bridge.accounts import account_of
from nsync.rucio_bridge.opendata import NAMES, bearers
from nsync.rucio_bridge.rows import SCOPES, Rows
from nsync.rucio_bridge.schemas import is_valid, misfit
from nsync.rucio_bridge.scopes import swapped
from nsync.store import schema

RSE_NAME_CHARS_MAX = 255
PROTOCOL_CLASS = re.compile(r"rucio\.rse\.protocols\.[a-z0-9_]+\.[A-Z][A-Za-z0-9_]*")
"""Rucio imports a protocol's implementation by its name: a remote word may only name a class in one of Rucio's own modules."""
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
HOSTNAME = re.compile(r"(?:[A-Za-z0-9_\[][A-Za-z0-9_.:\]-]*)?")
"""A scheme and a host, and nothing that a tool to which Rucio hands the URL could take for an option."""

_RENAME_RSE = "{} must rename its RSE {!r}, and then 'nsync conflict accept BATCH --partial' writes what waits here with the old name"

Actual = Mapping[Fact, Entry]


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
        self._asked: dict[str, Optional[str]] = {}
        self._accounts: dict[str, Optional[str]] = {}
        self._owners: dict[str, Optional[str]] = {}

    def reasons(self, kind: int, wanted: Mapping[Fact, Entry], actual: Actual) -> dict[Fact, str]:
        """Why entries of facts of one kind, that differ from their rows, cannot be written here; nothing for those that can."""
        ask: Optional[Callable[[Any, Any], Optional[str]]] = {
            fields.SCOPE: lambda fact, entry: _scope_reason(fact[1]) or (None if fact in actual else self._owner_reason(fact[1])),
            fields.DID: lambda fact, entry: self._did_reason(fact, entry, actual.get(fact)),
            fields.RSE: self._rse_reason,
            fields.REPLICA: lambda fact, entry: _path_reason(entry.path),
        }.get(kind)
        found = {fact: ask(fact, entry) for fact, entry in wanted.items()} if ask is not None else {}
        return {fact: reason for fact, reason in found.items() if reason is not None}

    def closed_off(self, facts: Collection[Fact]) -> dict[Fact, str]:
        """Those of `facts` that touch a private scope of this Rucio which has the name of a foreign one, and why.

        Whatever a remote says about it, nothing there is written, removed, or taken for the remote's, also where rows agree.
        """
        scopes = {fact[place] for fact in facts for place in _SCOPES[fact[0]]}
        reasons = {scope: self._private(scope) for scope in scopes}
        if not any(reasons.values()):
            return {}
        named = [(fact, reasons[fact[place]]) for fact in facts for place in _SCOPES[fact[0]]]
        return {fact: reason for fact, reason in named if reason is not None}

    def _private(self, scope: str) -> Optional[str]:
        if scope not in self._asked:
            self._asked[scope] = self._ask_private(scope)
        return self._asked[scope]

    def _ask_private(self, scope: str) -> Optional[str]:
        home = self.authority.charter.home(scope)
        if home is None or home.name == self.instance:
            return None
        local = swapped(scope)
        owner = self.session.execute(select(SCOPES.c.account).where(SCOPES.c.scope == InternalScope(local))).scalar()
        if owner is None or owner.external == account_of(home.name) or scope in self._shared_scopes:
            return None
        return (
            f"scope {local!r} of {home.name} exists here too, and belongs to account {owner.external!r}: a private scope of the same "
            f"name; if it is meant to be {home.name}'s, give it to account {account_of(home.name)!r} ('rucio scope update'), "
            f"else show that of {home.name} under another name: '[nsync] scope_map = {scope}:OTHER' in rucio.cfg"
        )

    def _owner_reason(self, scope: str) -> Optional[str]:
        """Why the account of the home of `scope` cannot own it here."""
        if scope not in self._owners:
            home = self.authority.charter.home(scope)
            self._owners[scope] = self._account_reason(home.name) if home is not None else None
        return self._owners[scope]

    def _account_reason(self, instance: str) -> Optional[str]:
        """Why the account that is to own what `instance` shares cannot. One that is suspended can: nobody acts as it."""
        if instance not in self._accounts:
            self._accounts[instance] = accounts.unfit(self.session, instance)
        return self._accounts[instance]

    @cached_property
    def _shared_scopes(self) -> set[str]:
        """Scopes that the operator shares are no private ones."""
        return set(self.session.execute(select(schema.shared_scope.c.scope)).scalars())

    def _did_reason(self, did: Did, entry: DidEntry, row: Optional[Entry]) -> Optional[str]:
        reason = _scope_reason(did[1]) or _name_reason(did[2])
        if reason is None and row is None:
            reason = self._account_reason(entry.origin) or self._owner_reason(did[1])
        if reason is not None:
            return reason
        if isinstance(row, DidEntry) and not row.identity.agrees(entry.identity):
            return (
                f"{did} exists here as {row.identity}, and is {entry.identity} in the shared namespace (first at {entry.origin}); "
                "erase the local one, or keep it and leave this parked"
            )
        reason = metadata.unfit(entry) if entry.meta else None
        return f"{did}: {reason}; its home must change it" if reason is not None else None

    def taken(self, wanted: Mapping[Fact, Entry]) -> dict[Fact, str]:
        """DIDs whose DOI or record id another DID bears here, once those that lose theirs in this transaction have given them up."""
        found: dict[Fact, str] = {}
        for name in NAMES:
            asked = {getattr(e, name.field): fact for fact, e in wanted.items() if getattr(e, name.field, None) is not None}
            for value, bearer in bearers(self.session, name, asked).items():
                if bearer != asked[value]:
                    what = "DOI" if name.field == fields.DOI else "record id"
                    found[asked[value]] = (
                        f"{what} {value} is {asked[value]} in the shared namespace, and belongs to {bearer} here; "
                        f"give {bearer} another {what}"
                    )
        return found

    def _rse_reason(self, fact: Rse, entry: RseEntry) -> Optional[str]:
        if fact.instance == self.instance:
            return None
        name = rse_name(fact)
        if not is_valid("rse", name):
            return f"RSE name {name!r} is not allowed by this Rucio's schema; {_RENAME_RSE.format(*fact[1:])}"
        if len(name) > RSE_NAME_CHARS_MAX:
            return f"RSE name {name[:60]!r}… has {len(name)} characters; Rucio holds {RSE_NAME_CHARS_MAX}; {_RENAME_RSE.format(*fact[1:])}"
        wrong = next((wrong for protocol in entry.protocols if (wrong := _protocol_misfit(protocol)) is not None), None)
        if wrong is not None:
            return f"{fact} {wrong}; {fact.instance} must change it"
        taken = self.session.execute(select(models.RSE.id).where(models.RSE.rse == name)).first()
        if taken is not None and self.rows.rse_of(fact) is None:
            return f"an RSE called {name!r} exists here and is not {fact.instance}'s; rename it"
        return None


_SCOPES = {
    fields.SCOPE: (1,),
    fields.DID: (1,),
    fields.ATTACHMENT: (1, 3),
    fields.CONSTITUENT: (1, 3),
    fields.RSE: (),
    fields.REPLICA: (1,),
}
"""Where the scopes stand in whose rows a fact is written, by its kind."""


def _scope_reason(scope: str) -> Optional[str]:
    wrong = _scope_misfit(swapped(scope))
    if wrong is None:
        return None
    return f"{wrong}; its home must rename it, or show it here under another name: '[nsync] scope_map = {scope}:OTHER' in rucio.cfg"


def _name_reason(name: str) -> Optional[str]:
    wrong = misfit("name", name)
    return f"{wrong}; its home must rename it" if wrong is not None else None


@lru_cache(maxsize=4096)
def _scope_misfit(scope: str) -> Optional[str]:
    return misfit("scope", scope)


def _protocol_misfit(protocol: Protocol) -> Optional[str]:
    if PROTOCOL_CLASS.fullmatch(protocol.impl) is None:
        return f"wants the protocol implementation {protocol.impl!r}; only classes of rucio.rse.protocols are taken from a peer"
    if SCHEME.fullmatch(protocol.scheme) is None or HOSTNAME.fullmatch(protocol.hostname) is None:
        return f"has a protocol at {protocol.scheme!r} {protocol.hostname!r}, which is no scheme and host"
    return None


def _path_reason(path: str) -> Optional[str]:
    if _NOT_BELOW.search(path):
        return f"path {path!r} does not lie below its RSE's prefix; its instance must mend the replica"
    return None


_NOT_BELOW = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)")
"""Begins with a slash, or has a part that is empty, "." or ".."."""
