"""What leaves Rucio because it left the shared namespace, and what stays in spite of that (R5.7).

Rows of foreign replicas and of DIDs on which nothing local depends are deleted. This instance's own replicas and the DIDs of its own
scopes are its own business. Whatever local rules, locks, replicas, attachments or users hold stays, DIDs suspended; `kept` names
each with who holds it, for the operator and for capture, which never makes a statement of it again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from rucio.core.rse_counter import decrease
from rucio.db.sqla import models
from rucio.db.sqla.constants import OpenDataDIDState
from sqlalchemy import Table, and_, delete, select, update
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.namespace.keys import Did, Fact, Replica
from nsync.rucio_bridge.fit import account_of, is_home
from nsync.rucio_bridge.rows import CONTENTS, DIDS, OPEN, REPLICAS, Rows, did_key, of_did, utc_now


class Removal:
    """The remover of one transaction."""

    def __init__(self, session: Session, rows: Rows, authority: Authority, instance: str) -> None:
        self.session = session
        self.rows = rows
        self.authority = authority
        self.instance = instance
        self.kept: dict[Fact, str] = {}
        """What left the shared namespace and stays here, with what holds it."""

    def replicas(self, replicas: Collection[Replica]) -> None:
        """Rows of foreign replicas that no local lock holds."""
        for fact in replicas:
            local = self.rows.rse_of(fact.rse)
            if local is None or fact.rse.instance == self.instance:
                continue
            key = and_(of_did(REPLICAS, fact.did), REPLICAS.c.rse_id == local.id, REPLICAS.c.lock_cnt == 0)
            size = self.session.execute(select(REPLICAS.c.bytes).where(key)).scalar()
            if size is None:
                self.kept[fact] = f"{fact} left the shared namespace and stays here, unshared, since local rules lock it"
                continue
            self.session.execute(delete(REPLICAS).where(key))
            decrease(local.id, 1, size, session=self.session)

    def dids(self, dids: Collection[Did]) -> None:
        """DIDs on which nothing local depends; in its own scopes this instance loses only rows that came from a guest."""
        for did in dids:
            if is_home(self.authority, self.instance, did) and not self._is_guests(did):
                continue
            holder = self._holder(did)
            if holder is None:
                self.session.execute(delete(DIDS).where(of_did(DIDS, did)))
                continue
            self.session.execute(update(OPEN).where(of_did(OPEN, did)).values(state=OpenDataDIDState.SUSPENDED, updated_at=utc_now()))
            self.kept[did] = f"{did} left the shared namespace and stays here, suspended and unshared, since local {holder} hold it"

    def _is_guests(self, did: Did) -> bool:
        """Whether the row of `did` was written here for another instance."""
        owner = self.session.execute(select(DIDS.c.account).where(of_did(DIDS, did))).scalar_one()
        return owner.external in {account_of(one.name) for one in self.authority.charter.instances if one.name != self.instance}

    def _holder(self, did: Did) -> Optional[str]:
        scope, name = did_key(did)
        for holder, table, (scope_column, name_column) in _HOLDERS:
            row = select(table.c[name_column]).where(table.c[scope_column] == scope, table.c[name_column] == name).limit(1)
            if self.session.execute(row).first() is not None:
                return holder
        return None


_HOLDERS: tuple[tuple[str, Table, tuple[str, str]], ...] = (
    ("replicas", REPLICAS, ("scope", "name")),
    ("rules", models.ReplicationRule.__table__, ("scope", "name")),
    ("attachments", CONTENTS, ("scope", "name")),
    ("attachments", CONTENTS, ("child_scope", "child_name")),
    ("metadata", models.DidMeta.__table__, ("scope", "name")),
    ("archives", models.ConstituentAssociation.__table__, ("scope", "name")),
    ("archives", models.ConstituentAssociation.__table__, ("child_scope", "child_name")),
    ("followers", models.DidFollowed.__table__, ("scope", "name")),
    ("dataset locks", models.DatasetLock.__table__, ("scope", "name")),
    ("dataset replicas", models.CollectionReplica.__table__, ("scope", "name")),
    ("requests", models.Request.__table__, ("scope", "name")),
    ("virtual placements", models.VirtualPlacements.__table__, ("scope", "name")),
)
"""What keeps a DID's row: the tables that refer to it, but for its open-data entry, which goes along."""
