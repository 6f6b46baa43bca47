"""The ground on which foreign data stand here: proxy accounts, scopes, and read-only RSEs (R7.3, R7.4).

Few rows with side effects, so Rucio's own functions write them, with the bridge's session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from rucio.common.types import InternalAccount, InternalScope
from rucio.core.account import add_account
from rucio.core.rse import add_protocol, add_rse, add_rse_attribute, del_rse_attribute
from rucio.core.scope import add_scope, check_scope
from rucio.db.sqla import models
from rucio.db.sqla.constants import AccountType
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from nsync.authority.charter import Charter
from nsync.authority.effective import Authority
from nsync.catalogue.entries import RseEntry
from nsync.errors import ConfigError
from nsync.namespace.keys import Did, Rse, Scope
from nsync.rucio_bridge import accounts
from nsync.rucio_bridge.accounts import account_of
from nsync.rucio_bridge.fit import Actual, rse_name
from nsync.rucio_bridge.rows import DIDS, ORIGIN, SCOPES, SHARED_ATTRIBUTES, Rows
from nsync.rucio_bridge.scopes import keep_map, kept_map, swapped


def map_scopes(session: Session, scope_map: Mapping[str, str], charter: Charter) -> None:
    """Show foreign scopes under the local names of `scope_map` from now on. Nothing renames rows, so it may change only for a scope of
    which nothing stands here. Raises ConfigError."""
    before = kept_map(session.connection())
    for scope in sorted(before.keys() | scope_map.keys()):
        home, was, name = charter.home(scope), before.get(scope, scope), scope_map.get(scope, scope)
        if home is None or was == name:
            continue
        mine = InternalAccount(account_of(home.name))
        if _owner(session, was) == mine and session.execute(select(DIDS.c.name).where(DIDS.c.scope == InternalScope(was)).limit(1)).first():
            way_out = f"write {scope}:{was} there" if was != scope else f"take {scope} out of it"
            raise ConfigError(
                f"[nsync] scope_map: DIDs of {home.name}'s scope {scope} stand here as {was}, and cannot be renamed; {way_out}"
            )
        owner = _owner(session, name)
        if name != scope and owner not in (None, mine):
            raise ConfigError(
                f"[nsync] scope_map = {scope}:{name}: scope {name} belongs to account {owner} here; choose a name that no scope has"
            )
    if scope_map != before:
        keep_map(session.connection(), scope_map)


def _owner(session: Session, scope: str) -> Optional[InternalAccount]:
    owner: Optional[InternalAccount] = session.execute(select(SCOPES.c.account).where(SCOPES.c.scope == InternalScope(scope))).scalar()
    return owner


class Ground:
    """The writer of accounts, scopes and RSEs in one transaction."""

    def __init__(self, session: Session, rows: Rows, authority: Authority, instance: str) -> None:
        self.session = session
        self.rows = rows
        self.authority = authority
        self.instance = instance

    def lay(self, wanted: Actual, actual: Actual) -> None:
        """Make what the entries of `wanted` stand on, where it is not here yet."""
        self._scopes(wanted, actual)
        self._rses(wanted, actual)

    def account(self, instance: str) -> InternalAccount:
        """The account that owns here what `instance` shares; made when it is needed first."""
        account = InternalAccount(account_of(instance))
        if not accounts.exists(self.session, account):
            add_account(account, AccountType.SERVICE, None, session=self.session)
        return account

    def _scopes(self, wanted: Actual, actual: Actual) -> None:
        scopes = {fact.scope for fact in wanted if isinstance(fact, (Scope, Did)) and fact not in actual}
        for name in sorted(scopes):
            home = self.authority.charter.home(name)
            scope = InternalScope(swapped(name))
            if home is not None and not check_scope(scope, session=self.session):
                add_scope(scope, self.account(home.name), session=self.session)

    def _rses(self, wanted: Actual, actual: Actual) -> None:
        for fact, entry in wanted.items():
            if not isinstance(fact, Rse) or not isinstance(entry, RseEntry) or fact.instance == self.instance or entry == actual.get(fact):
                continue
            local = self.rows.rse_of(fact)
            rse_id = local.id if local is not None else self._add_rse(fact)
            self._define(rse_id, entry, had=dict(local.attributes) if local is not None else {})
            self.rows.forget_rses()

    def _add_rse(self, fact: Rse) -> str:
        """Read-only, non-deterministic with explicit paths, never a destination (R7.4)."""
        rse_id: str = add_rse(
            rse_name(fact),
            deterministic=False,
            availability_read=True,
            availability_write=False,
            availability_delete=False,
            session=self.session,
        )
        add_rse_attribute(rse_id, ORIGIN, fact.instance, session=self.session)
        return rse_id

    def _define(self, rse_id: str, entry: RseEntry, had: Mapping[str, Any]) -> None:
        """Replace the doors and attributes of a foreign RSE, which are nobody's here but its instance's."""
        protocols = models.RSEProtocol.__table__
        self.session.execute(delete(protocols).where(protocols.c.rse_id == rse_id))
        for protocol in entry.protocols:
            lan, wan, tpc = protocol.lan or 0, protocol.wan or 0, protocol.tpc or 0
            domains = {
                "lan": {"read": lan, "write": 0, "delete": 0},
                "wan": {"read": wan, "write": 0, "delete": 0, "third_party_copy_read": tpc, "third_party_copy_write": 0},
            }
            parameter = {**protocol._asdict(), "domains": domains, "extended_attributes": None}
            add_protocol(rse_id, {k: v for k, v in parameter.items() if k not in ("lan", "wan", "tpc")}, session=self.session)
        said = dict(entry.attributes)
        for key in SHARED_ATTRIBUTES:
            if key in had:
                del_rse_attribute(rse_id, key, session=self.session)
            if key in said:
                add_rse_attribute(rse_id, key, {"True": True, "False": False}.get(said[key], said[key]), session=self.session)
