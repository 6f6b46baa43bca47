"""What leaves Rucio because it left the shared namespace, and what stays in spite of that (R5.7).

Attachments are detached as Rucio detaches them. Rows of foreign replicas and of DIDs on which nothing local depends are deleted. This
instance's own replicas and the DIDs of its own scopes are its own business. Whatever local rules, locks, replicas, attachments or
users hold stays, DIDs suspended; each is told with who holds it, for the operator and for capture, which never makes a
statement of it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from rucio.common.types import InternalAccount
from rucio.core.rse_counter import decrease
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDReEvaluation, OpenDataDIDState
from sqlalchemy import Table, func, insert, literal, select, update
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.namespace.keys import Attachment, Did, Replica
from nsync.rucio_bridge.accounts import account_of
from nsync.rucio_bridge.fit import is_home
from nsync.rucio_bridge.lookup import external, internal, look_up, names_of, utc_now
from nsync.rucio_bridge.rows import CONTENTS, DIDS, OPEN, REPLICAS, Rows
from nsync.rucio_bridge.stage import EDGES, NAMES, PLACES, REEVALUATED, Stage, as_in, delete_staged, known, probing, same

HISTORY = models.DataIdentifierAssociationHistory.__table__

_REPLICA = ("scope", "name", "rse_id")
_EDGE = ("scope", "name", "child_scope", "child_name")
_REMEMBERED = (*_EDGE, "bytes", "adler32", "md5", "guid", "events", "rule_evaluation", "created_at", "updated_at")


class Removal:
    """The remover of one transaction."""

    def __init__(self, session: Session, rows: Rows, stage: Stage, authority: Authority, instance: str) -> None:
        self.session = session
        self.rows = rows
        self.stage = stage
        self.authority = authority
        self.instance = instance
        self.removed: Counter[str] = Counter()
        """Rows that went, by what they were."""
        self._guests = frozenset(
            InternalAccount(account_of(one.name)).internal for one in authority.charter.instances if one.name != instance
        )

    def attachments(self, edges: Collection[Attachment]) -> None:
        """Those that are here go to Rucio's history, and the judge evaluates each parent's rules."""
        if not edges:
            return
        self.stage.put(EDGES, [(internal(e[1]), e[2], internal(e[3]), e[4]) for e in edges])
        values = {name: CONTENTS.c[name] for name in _REMEMBERED}
        types = {name: as_in(HISTORY.c[name], CONTENTS.c[name]) for name in ("did_type", "child_type")}
        dated = {"did_created_at": DIDS.c.created_at, "deleted_at": literal(utc_now(), HISTORY.c.deleted_at.type)}
        everything = {**values, **types, **dated}
        gone = select(*everything.values()).select_from(EDGES).join(CONTENTS, same(CONTENTS, EDGES, *_EDGE))
        gone = gone.join(DIDS, same(DIDS, EDGES, "scope", "name"))
        detached = literal(DIDReEvaluation.DETACH.value)
        with probing(self.session.connection()):
            if not known(self.session, CONTENTS, EDGES, *_EDGE):
                return
            self.session.execute(insert(HISTORY).from_select(list(everything), gone))
            self.stage.gather(REEVALUATED, gone.with_only_columns(EDGES.c.scope, EDGES.c.name, detached).distinct())
            self.removed["attachments"] += delete_staged(self.session, CONTENTS, EDGES, _EDGE)

    def replicas(self, replicas: Collection[Replica]) -> dict[Replica, str]:
        """Rows of foreign replicas that no local lock holds; returns those that one does, with what to tell of it."""
        named = {}
        for fact in replicas:
            local = self.rows.rse_of(fact.rse)
            if local is not None and fact.rse.instance != self.instance:
                named[internal(fact[1]), fact[2], local.id] = fact
        if not named:
            return {}
        self.stage.put(PLACES, list(named), _REPLICA)
        placed = select(PLACES.c.scope, PLACES.c.name, PLACES.c.rse_id).join(REPLICAS, same(REPLICAS, PLACES, *_REPLICA))
        free = REPLICAS.c.lock_cnt == 0
        sums = placed.with_only_columns(PLACES.c.rse_id, func.count(), func.coalesce(func.sum(REPLICAS.c.bytes), 0))
        with probing(self.session.connection()):
            locked = [named[tuple(row)] for row in self.session.execute(placed.where(~free))]
            counted = self.session.execute(sums.where(free).group_by(PLACES.c.rse_id)).all()
            self.removed["replicas"] += delete_staged(self.session, REPLICAS, PLACES, _REPLICA, free)
        for rse_id, files, size in counted:
            decrease(rse_id, files, int(size), session=self.session)
        return {fact: f"{fact} left the shared namespace and stays here, unshared, since local rules lock it" for fact in locked}

    def leaving(self, dids: Collection[Did]) -> set[Did]:
        """Those whose rows go on others' word: all but what this instance's own users made in its own scopes."""
        own = [names_of(did) for did in dids if is_home(self.authority, self.instance, did)]
        rows = look_up(self.session, "d.scope, d.name, d.account", f"{DIDS.fullname} d", ("d.scope", "d.name"), own)
        return set(dids) - {Did(external(scope), name) for scope, name, account in rows if account not in self._guests}

    def dids(self, dids: Collection[Did]) -> dict[Did, str]:
        """Those of `leaving` on which nothing local depends. Returns those that something holds, with what to tell of each; they are
        suspended."""
        named = {names_of(did): did for did in dids}
        if not named:
            return {}
        self.stage.put(NAMES, list(named))
        held: dict[Did, str] = {}
        with probing(self.session.connection()):
            for names, holder in self._holders():
                held.setdefault(named[names], holder)
            if held:
                self.stage.put(NAMES, [names_of(did) for did in held])
                suspended = {"state": OpenDataDIDState.SUSPENDED, "updated_at": utc_now()}
                self.session.execute(update(OPEN).where(same(OPEN, NAMES, "scope", "name")).values(suspended))
                self.stage.put(NAMES, [names for names, did in named.items() if did not in held])
            self.removed["dids"] += delete_staged(self.session, DIDS, NAMES, ("scope", "name"))
        return {
            did: f"{did} left the shared namespace and stays here, suspended and unshared, since local {holder} hold it"
            for did, holder in held.items()
        }

    def _holders(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Which of the staged DIDs are held, and by what."""
        for holder, table, (scope, name) in _HOLDERS:
            there = select(literal(1)).where(table.c[scope] == NAMES.c.scope, table.c[name] == NAMES.c.name).correlate(NAMES).exists()
            for row in self.session.execute(select(NAMES.c.scope, NAMES.c.name).where(there)).all():
                yield tuple(row), holder


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
