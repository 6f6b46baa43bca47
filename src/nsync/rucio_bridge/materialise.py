"""Materialise: catalogue entries into Rucio's rows, in the transaction that moves log and state (R7.3).

Given the facts that changed, it compares their entries with the rows and writes the difference, in foreign-key order. So it is
idempotent, a second run writes nothing, and whatever waits can simply be tried again. All facts of a call appear
together or not at all: if one does not fit, all are parked.

Attachments that the shared view dropped are detached; what else leaves, and what is held, is for `removal` to say (R5.7).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from rucio.common.exception import RucioException
from rucio.common.types import InternalAccount, InternalScope
from rucio.core.did import detach_dids, set_status
from rucio.core.rse_counter import increase
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDAvailability, DIDReEvaluation, DIDType, ReplicaState
from sqlalchemy import Table, insert, select, tuple_, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry, Entry, ReplicaEntry
from nsync.catalogue.rules import close_key, open_data_key
from nsync.failpoints import failpoint
from nsync.namespace import fields, keys
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Fact, Replica, Rse, ends_of, key_bytes
from nsync.rucio_bridge import constituents, metadata, opendata, parked
from nsync.rucio_bridge.fit import Actual, Desired, Fit, is_home
from nsync.rucio_bridge.ground import Ground
from nsync.rucio_bridge.removal import Removal
from nsync.rucio_bridge.rows import CONTENTS, DIDS, REPLICAS, Rows, did_key, matches, of_did, utc_now
from nsync.rucio_bridge.sizes import stale
from nsync.store.database import chunks
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

_LEFT = " left"
"""Ends the name of a batch of what left the namespace and stays here: it waits apart from the rest of its changeset."""

Gone = TypeVar("Gone", bound=Fact)


class Materialise:
    """The writer of one transaction."""

    def __init__(self, session: Session, state: SqlState, rows: Rows, instance: str) -> None:
        self.session = session
        self.state = state
        self.rows = rows
        self.instance = instance
        self.authority: Authority = state.authority
        self.ground = Ground(session, rows, state.authority, instance)
        self.removal = Removal(session, rows, state.authority, instance)

    def run(self, batch: str, now_ms: int) -> bool:
        """Write what changed (`SqlState.changes`), or park it; tells whether all of it is written."""
        changes = self.state.changes
        facts = {fact for kind in range(fields.SCOPE, fields.ATTRIBUTE) for part in changes.parts(kind) for fact in part}
        changes.clear()
        needed = {need for fact in facts for need in ends_of(fact)}
        places = {need for need in needed if isinstance(need, Rse)}  # an RSE that fits is not held up by a batch that does not
        facts |= places | parked.with_their_batches(self.session, (facts | needed) - places)
        entries, actual = self.state.entries(facts), self.rows.read(facts)
        fit = Fit(self.session, self.rows, self.authority, self.instance)
        private = fit.closed_off(facts)
        desired: Desired = {
            fact: entries.get(fact) for fact in facts if fact not in private and not matches(entries.get(fact), actual.get(fact))
        }
        reasons = {fact: reason for fact, reason in private.items() if fact in entries}
        parked.release(self.session, facts - desired.keys() - reasons.keys())
        regrown = {fact.parent for fact in facts if isinstance(fact, Attachment)}
        reasons.update(fit.reasons(desired, actual))
        reasons = reasons or self._try(desired, actual, regrown, batch)
        if not reasons:
            kept = self.removal.kept
            parked.release(self.session, desired.keys() - kept.keys())
            self._park(kept, kept, f"{batch.removesuffix(_LEFT)}{_LEFT}", now_ms)
            return not kept
        had_row = {fact for fact, entry in desired.items() if _is_of(actual.get(fact), entry)}
        self._park(desired.keys() | reasons.keys(), reasons, batch, now_ms, had_row)
        return False

    def _try(self, desired: Desired, actual: Actual, regrown: set[Did], batch: str) -> dict[Fact, str]:
        """Write, or undo what was written and say why Rucio refused it."""
        try:
            with self.session.begin_nested():
                self._write(desired, actual)
                self._recount(regrown)
        except (DBAPIError, OverflowError, RucioException) as error:
            if not _is_about_the_rows(error):
                raise
            LOG.exception("changeset %s cannot be written here", batch)
            return {min([*desired, *regrown], key=key_bytes): f"Rucio refused the rows: {str(error)[:500]}"}
        return {}

    def _park(self, facts: Collection[Fact], reasons: Mapping[Fact, str], batch: str, now_ms: int, had_row: Collection[Fact] = ()) -> None:
        if facts and parked.park(self.session, batch, facts, reasons, now_ms, had_row):
            LOG.warning("parked %d facts of changeset %s: %s", len(facts), batch, "; ".join(sorted(set(reasons.values()))[:3]))

    def _write(self, desired: Desired, actual: Actual) -> None:
        """In foreign-key order: what others refer to comes first and goes last."""
        self.ground.lay(desired, actual)
        opendata.release_names(self.session, desired, actual, self._is_home)
        detached = [fact for fact in desired if isinstance(fact, Attachment) and desired[fact] is None and fact in actual]
        self._detach(detached)
        self.removal.replicas([fact for fact in desired if isinstance(fact, Replica) and desired[fact] is None and fact in actual])
        constituents.remove(self.session, _gone(Constituent, desired, actual))
        failpoint("rows-detached")
        self._add_dids(desired, actual)
        metadata.write(self.session, desired, actual)
        failpoint("rows-dids")
        attached = [fact for fact in desired if isinstance(fact, Attachment) and desired[fact] is not None and fact not in actual]
        self._attach(attached)
        packed = [fact for fact in desired if isinstance(fact, Constituent) and desired[fact] is not None and fact not in actual]
        constituents.add(self.session, packed)
        failpoint("rows-contents")
        self._put_replicas(desired, actual)
        failpoint("rows-replicas")
        self._close({fact for fact in desired if isinstance(fact, Did)})
        failpoint("rows-closed")
        opendata.write(self.session, desired, actual)
        failpoint("rows-open-data")
        gone = _gone(Did, desired, actual)
        metadata.let_go(self.session, self.state.about, gone)
        self.removal.dids(gone)
        failpoint("rows-removed")

    # ---- DIDs, attachments, replicas: many rows, so one statement for all

    def _add_dids(self, desired: Desired, actual: Actual) -> None:
        accounts: dict[str, InternalAccount] = {}
        rows = []
        for fact, entry in desired.items():
            if isinstance(fact, Did) and isinstance(entry, DidEntry) and fact not in actual:
                if entry.origin not in accounts:
                    accounts[entry.origin] = self.ground.account(entry.origin)
                rows.append(_did_row(fact, entry, accounts[entry.origin]))
        self._insert(DIDS, rows)

    def _attach(self, edges: Collection[Attachment]) -> None:
        """As Rucio does: with the size and checksums of a file, and of no collection. The judge evaluates each parent's rules once."""
        rows_of = self._did_rows({end for edge in edges for end in (edge.parent, edge.child)})
        now = utc_now()
        rows = []
        for edge in edges:
            parent, child = rows_of[edge.parent], rows_of[edge.child]._mapping
            rows.append(
                {
                    "scope": InternalScope(edge.parent.scope),
                    "name": edge.parent.name,
                    "child_scope": InternalScope(edge.child.scope),
                    "child_name": edge.child.name,
                    "did_type": parent.did_type,
                    "child_type": child["did_type"],
                    **{column: child[column] if child["did_type"] == DIDType.FILE else None for column in _OF_FILES},
                    "rule_evaluation": True,
                    "created_at": now,
                    "updated_at": now,
                }
            )
        self._insert(CONTENTS, rows)
        for parent in sorted({edge.parent for edge in edges}):
            scope, name = did_key(parent)
            models.UpdatedDID(scope=scope, name=name, rule_evaluation_action=DIDReEvaluation.ATTACH).save(session=self.session, flush=False)
        self.session.flush()

    def _detach(self, edges: Collection[Attachment]) -> None:
        by_parent: dict[Did, list[dict[str, Any]]] = {}
        for edge in edges:
            scope, name = did_key(edge.child)
            by_parent.setdefault(edge.parent, []).append({"scope": scope, "name": name})
        for parent, children in sorted(by_parent.items()):
            scope, name = did_key(parent)
            detach_dids(scope, name, children, session=self.session)
        self.session.flush()

    def _put_replicas(self, desired: Desired, actual: Actual) -> None:
        """Foreign replicas: available, never tombstoned, counted (R7.4)."""
        wanted = [
            (fact, entry)
            for fact, entry in desired.items()
            if isinstance(fact, Replica)
            and isinstance(entry, ReplicaEntry)
            and fact.rse.instance != self.instance
            and entry != actual.get(fact)
        ]
        rows_of = self._did_rows({fact.did for fact, _ in wanted})
        rows = []
        counts: dict[str, list[int]] = {}
        now = utc_now()
        for fact, entry in wanted:
            local = self.rows.rse_of(fact.rse)
            assert local is not None, "its RSE came first"
            scope, name = did_key(fact.did)
            if fact in actual:
                self.session.execute(
                    update(REPLICAS)
                    .where(of_did(REPLICAS, fact.did), REPLICAS.c.rse_id == local.id)
                    .values(path=entry.path, state=ReplicaState[entry.state], updated_at=now)
                )
                continue
            did = rows_of[fact.did]
            row = {
                "rse_id": local.id,
                "scope": scope,
                "name": name,
                "bytes": did.bytes,
                "adler32": did.adler32,
                "md5": did.md5,
                "path": entry.path,
            }
            rows.append({**row, "state": ReplicaState[entry.state], "lock_cnt": 0, "tombstone": None, "created_at": now, "updated_at": now})
            count = counts.setdefault(local.id, [0, 0])
            count[0] += 1
            count[1] += did.bytes or 0
        self._insert(REPLICAS, rows)
        for rse_id, (files, size) in counts.items():
            increase(rse_id, files, size, session=self.session)

    # ---- states of collections

    def _close(self, dids: set[Did]) -> None:
        """Close and reopen. Datasets come before the containers whose sizes are made of theirs."""
        entries = self.state.entries(dids)
        rows, mine = self.rows.read(entries.keys()), self._closed_by_me(entries.keys())
        for did, entry in sorted(entries.items(), key=lambda pair: (_is_container(pair[1]), key_bytes(pair[0]))):
            row = rows.get(did)
            if not isinstance(did, Did) or not isinstance(entry, DidEntry) or not isinstance(row, DidEntry) or entry.closed is None:
                continue
            closed = entry.closed or (bool(row.closed) and did in mine)
            if closed != row.closed:
                self._set_open(did, not closed)

    def _recount(self, regrown: set[Did]) -> None:
        """Close again what got other content while closed, so that Rucio computes its size anew (catalogue rule 7)."""
        for did in stale(self.rows, regrown):
            self.session.execute(update(DIDS).where(of_did(DIDS, did)).values(is_open=True))
            self._set_open(did, False)

    def _closed_by_me(self, dids: Collection[Fact]) -> set[Fact]:
        """Those that this instance, a guest, closed or published, unacknowledged by their home (R5.6): their rows stay closed."""
        me = self.authority.charter.by_name(self.instance)
        assert me is not None, "the configuration names an instance of the charter"
        wanted = [key(did) for did in dids if isinstance(did, Did) for key in (close_key, open_data_key)]
        return {key.fact for key in self.state.waiting(me.author, wanted) if isinstance(key, Attribute)}

    def _set_open(self, did: Did, is_open: bool) -> None:
        scope, name = did_key(did)
        self.session.expire_all()  # core reads through the identity map
        set_status(scope, name, open=is_open, session=self.session)

    # ---- leaves

    def _is_home(self, did: Did) -> bool:
        return is_home(self.authority, self.instance, did)

    def _did_rows(self, dids: Collection[Did]) -> dict[Did, Any]:
        found: dict[Did, Any] = {}
        for chunk in chunks([did_key(did) for did in dids]):
            for row in self.session.execute(select(DIDS).where(tuple_(DIDS.c.scope, DIDS.c.name).in_(chunk))):
                found[Did(row.scope.external, row.name)] = row
        return found

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            self.session.execute(insert(table), rows)


_OF_FILES = ("bytes", "adler32", "md5", "guid", "events")
"""Columns that an attachment takes over from a file."""


def _did_row(did: Did, entry: DidEntry, account: InternalAccount) -> dict[str, Any]:
    """A new row. Collections are born open, and closed once their content is there. `is_new` NULL keeps them from subscriptions:
    through the table, since the ORM would write the server's default, TRUE."""
    scope, name = did_key(did)
    identity = entry.identity
    now = utc_now()
    return {
        "scope": scope,
        "name": name,
        **metadata.columns_of(entry),
        "account": account,
        "did_type": DIDType(identity.type),
        "is_open": None if identity.type == keys.FILE else True,
        "bytes": identity.size,
        "adler32": identity.adler32.hex() if identity.adler32 is not None else None,
        "md5": identity.md5.hex() if identity.md5 is not None else None,
        "availability": DIDAvailability.AVAILABLE,
        "is_new": None,
        "suppressed": False,
        "purge_replicas": True,
        "created_at": now,
        "updated_at": now,
    }


def _gone(kind: type[Gone], desired: Desired, actual: Actual) -> list[Gone]:
    return [fact for fact in desired if isinstance(fact, kind) and desired[fact] is None and fact in actual]


def _is_of(row: Any, entry: Any) -> bool:
    """Whether `row` is what `entry` shows, in another state perhaps, and not another DID of its name."""
    if isinstance(row, DidEntry) and isinstance(entry, DidEntry):
        return row.identity.agrees(entry.identity)
    return row is not None and entry is not None


def _is_container(entry: Entry) -> bool:
    return isinstance(entry, DidEntry) and entry.identity.type == keys.CONTAINER


def _is_about_the_rows(error: Exception) -> bool:
    """Whether Rucio refused what the rows say, so that another try would fail too; else the database failed, and it is tried again."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (IntegrityError, DataError)) or "integer overflow" in str(error.orig)  # SQLite's sum() of sizes
    return True
