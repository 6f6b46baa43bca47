"""New rows of DIDs, attachments and replicas: a part of a changeset at a time, staged, with one statement for all of them.

What Rucio copies from a DID into its attachments and replicas (types, sizes, checksums) is copied by the database. So a row whose DID is
not there is not written, and `lacking` names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Optional

from rucio.common.types import InternalAccount
from rucio.core.rse_counter import increase
from rucio.db.sqla.constants import DIDAvailability, DIDReEvaluation, ReplicaState
from sqlalchemy import DateTime, Select, Table, and_, case, false, func, insert, literal, null, or_, select, true, update
from sqlalchemy.orm import Session, aliased

from nsync.catalogue.entries import DidEntry, ReplicaEntry
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Replica
from nsync.rucio_bridge.lookup import external, internal, utc_now
from nsync.rucio_bridge.metadata import COLUMNS, FLAGS, columns_of
from nsync.rucio_bridge.rows import CONTENTS, DIDS, REPLICAS
from nsync.rucio_bridge.stage import EDGES, NEW_DIDS, PLACES, REEVALUATED, Stage, as_in, known, leave_known, probing, same

_OF_FILES = ("bytes", "adler32", "md5", "guid", "events")
"""Columns that an attachment takes over from a file."""
_OF_REPLICAS = ("bytes", "adler32", "md5")
_EDGE = ("scope", "name", "child_scope", "child_name")
_REPLICA = ("scope", "name", "rse_id")
_LETTERS = {state.name: state.value for state in ReplicaState}


class Inserts:
    """The writer of one transaction."""

    def __init__(self, session: Session, stage: Stage, is_new: bool) -> None:
        """`is_new`: whether foreign collections are new to Rucio's transmogrifier, so that local subscriptions match them."""
        self.session = session
        self.stage = stage
        self.is_new = is_new
        self.written: Counter[str] = Counter()
        """New rows, by what they are."""

    # ---- DIDs

    def dids(self, new: Mapping[Did, DidEntry], account: Callable[[str], InternalAccount]) -> None:
        """Rows of DIDs that have none. Collections are born open, and closed once their content is there."""
        if not new:
            return
        owners = {origin: str(account(origin).internal) for origin in {entry.origin for entry in new.values()}}
        used = sorted({name for entry in new.values() for name, _ in entry.meta if name in COLUMNS})
        rows = [_did_row(did, entry, owners[entry.origin], used) for did, entry in new.items()]
        self.stage.put(NEW_DIDS, rows, (*_DID_COLUMNS, *used))
        s, now = NEW_DIDS.c, _now()
        is_file = s.did_type == keys.FILE
        values: dict[str, Any] = {
            **{name: s[name] for name in ("scope", "name", "account", "bytes", "adler32", "md5", *FLAGS)},
            **{name: as_in(DIDS.c[name], s[name]) for name in used},
            "transient": func.coalesce(s.transient, false()),
            "did_type": as_in(DIDS.c.did_type, s.did_type),
            "is_open": case((is_file, null()), else_=true()),
            "availability": literal(DIDAvailability.AVAILABLE, DIDS.c.availability.type),
            "is_new": case((is_file, null()), else_=true()) if self.is_new else null(),  # NULL keeps it from subscriptions
            "suppressed": false(),
            "purge_replicas": true(),
            "created_at": now,
            "updated_at": now,
        }
        self.written["dids"] += self._insert(DIDS, values, select(NEW_DIDS))

    # ---- attachments

    def attach(self, edges: Collection[Attachment]) -> Optional[Attachment]:
        """Those that are not here yet, as Rucio does: with the size and checksums of a file, and of no collection. The judge evaluates
        each parent's rules once.

        Returns one whose ends are not both here, if there is one.
        """
        if not edges:
            return None
        new = self._new(EDGES, CONTENTS, _EDGE, [(internal(e[1]), e[2], internal(e[3]), e[4]) for e in edges])
        parent, child = aliased(DIDS, name="p"), aliased(DIDS, name="d")
        s, now = EDGES.c, _now()
        is_file = child.c.did_type == keys.FILE
        values = {
            **{name: s[name] for name in _EDGE},
            "did_type": as_in(CONTENTS.c.did_type, parent.c.did_type),
            "child_type": as_in(CONTENTS.c.child_type, child.c.did_type),
            **{name: case((is_file, child.c[name]), else_=null()) for name in _OF_FILES},
            "rule_evaluation": true(),
            "created_at": now,
            "updated_at": now,
        }
        ends = select(EDGES).join(parent, same(parent, EDGES, "scope", "name"))
        ends = ends.join(child, and_(child.c.scope == s.child_scope, child.c.name == s.child_name))
        if new and self._insert(CONTENTS, values, ends) < new:
            found = self._lacking(EDGES, (("scope", "name"), ("child_scope", "child_name")))
            return Attachment(Did(external(found[0]), found[1]), Did(external(found[2]), found[3]))
        if new:
            self.written["attachments"] += new
            self.stage.gather(REEVALUATED, select(s.scope, s.name, literal(DIDReEvaluation.ATTACH.value)).distinct())
        return None

    # ---- replicas

    def replicas(self, wanted: Mapping[Replica, ReplicaEntry], rse_ids: Mapping[tuple[str, str], str]) -> Optional[Replica]:
        """Foreign replicas with their paths and states: never tombstoned, counted (R7.4). `rse_ids`: by instance and name.

        Returns one whose DID is not here, if there is one.
        """
        if not wanted:
            return None
        rows = [(internal(r[1]), r[2], rse_ids[r[3:]], entry.path, _LETTERS[entry.state]) for r, entry in wanted.items()]
        new = self._new(PLACES, REPLICAS, _REPLICA, rows, self._move)
        if not new:
            return None
        s, now = PLACES.c, _now()
        values = {
            **{name: as_in(REPLICAS.c[name], s[name]) for name in ("rse_id", "scope", "name", "path", "state")},
            **{name: DIDS.c[name] for name in _OF_REPLICAS},
            "lock_cnt": literal(0),
            "tombstone": null(),
            "created_at": now,
            "updated_at": now,
        }
        placed = select(PLACES).join(DIDS, same(DIDS, PLACES, "scope", "name"))
        if self._insert(REPLICAS, values, placed) < new:
            found = self._lacking(PLACES, (("scope", "name"),))
            did = Did(external(found.scope), found.name)
            return next(replica for replica in wanted if replica.did == did)
        self.written["replicas"] += new
        with probing(self.session.connection()):
            sums = placed.with_only_columns(s.rse_id, func.count(), func.coalesce(func.sum(DIDS.c.bytes), 0)).group_by(s.rse_id)
            for rse_id, files, size in self.session.execute(sums).all():
                increase(rse_id, files, int(size), session=self.session)
        return None

    def _move(self) -> None:
        """Other paths and states of staged replicas that are here."""
        state = as_in(REPLICAS.c.state, PLACES.c.state)
        differs = or_(REPLICAS.c.path.is_distinct_from(PLACES.c.path), REPLICAS.c.state != state)
        values = {"path": PLACES.c.path, "state": state, "updated_at": _now()}
        self.session.execute(update(REPLICAS).where(same(REPLICAS, PLACES, *_REPLICA), differs).values(values))

    # ---- leaves

    def _new(
        self, stage: Table, table: Table, key: Sequence[str], rows: Sequence[tuple[Any, ...]], others: Callable[[], None] = lambda: None
    ) -> int:
        """Stage `rows`, and leave there what `table` has not yet; returns how many those are. `others` is called before, with all."""
        self.stage.put(stage, rows)
        with probing(self.session.connection()):
            there = known(self.session, table, stage, *key)
            if there:
                others()
                leave_known(self.session, table, stage, *key)
        return len(rows) - there

    def _insert(self, table: Table, values: Mapping[str, Any], source: Select[Any]) -> int:
        with probing(self.session.connection()):
            statement = insert(table).from_select(list(values), source.with_only_columns(*values.values()))
            done = self.session.execute(statement, execution_options={"preserve_rowcount": True})
        return int(done.rowcount)  # type: ignore[attr-defined]

    def _lacking(self, stage: Table, ends: Sequence[tuple[str, str]]) -> Any:
        """One of what is staged whose DIDs are not all here."""
        there = [
            select(literal(1)).where(DIDS.c.scope == stage.c[scope], DIDS.c.name == stage.c[name]).correlate(stage).exists()
            for scope, name in ends
        ]
        return self.session.execute(select(stage).where(or_(*(~one for one in there))).limit(1)).one()


_DID_COLUMNS = ("scope", "name", "account", "did_type", "adler32", "md5", "bytes", *FLAGS)


def _did_row(did: Did, entry: DidEntry, account: str, used: Sequence[str]) -> tuple[Any, ...]:
    kind, size, adler32, md5 = entry.identity
    row = (
        internal(did[1]),
        did[2],
        account,
        kind,
        adler32.hex() if adler32 is not None else None,
        md5.hex() if md5 is not None else None,
        size,
        entry.monotonic,
        entry.hidden,
        entry.obsolete,
    )
    if not used:
        return row
    values = columns_of(entry)
    return (*row, *(values[name] for name in used))


def _now() -> Any:
    return literal(utc_now(), DateTime())
