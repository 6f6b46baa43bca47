"""Materialise: catalogue entries into Rucio's rows, in the transaction that moves log and state (R7.3).

Given the facts that changed (`SqlState.changes`), it compares their entries with the rows and writes the difference, in foreign-key
order and part by part, so that a changeset of a million files needs no more memory than one part. It is idempotent, a second
run writes nothing, and whatever waits can simply be tried again.

All facts of a call appear together or not at all: they are written within a savepoint, and the first that does not fit ends the
writing. Then the other parts are only looked through for more reasons, what was written is undone, and all are parked (R7.6). Where
the operator accepted that facts wait by themselves (`parked.aside`), the rest is tried without them and what hangs on them by key.

Attachments that the shared view dropped are detached; what else leaves, and what is held, is for `removal` to say (R5.7).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Optional, TypeVar

from rucio.common.exception import RucioException
from rucio.core.message import add_message
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry, Entry, ReplicaEntry
from nsync.catalogue.rules import close_key, open_data_key
from nsync.failpoints import failpoint
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Fact, Replica, Rse, ends_of, key_bytes
from nsync.rucio_bridge import constituents, metadata, opendata, parked
from nsync.rucio_bridge.closing import Closing
from nsync.rucio_bridge.fit import Fit, is_home
from nsync.rucio_bridge.ground import Ground
from nsync.rucio_bridge.inserts import Inserts
from nsync.rucio_bridge.removal import Removal
from nsync.rucio_bridge.rows import Rows, matches
from nsync.rucio_bridge.stage import Stage
from nsync.store.changes import Entries
from nsync.store.collector import collector_paused
from nsync.store.database import Unseen, met_others
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

REASONS_MAX = 1000
"""How many facts of one call are told a reason of their own; the others wait with them."""
ASIDE_MAX = 100_000
"""How many facts of one call can wait by themselves; where more do not fit, nothing of it is written. Each is some 500 bytes of memory."""

FACTS = (fields.SCOPE, fields.RSE, fields.DID, fields.ATTACHMENT, fields.CONSTITUENT, fields.REPLICA)
"""The lists of changes in the order in which they are written: what others refer to comes first."""
COLLECTIONS, OPENED, GONE = 20, 21, 22
"""Lists of work that waits until all parts were seen: states of collections, open data, DIDs to be deleted."""

T = TypeVar("T", bound=Fact)
Actual = Mapping[Fact, Entry]


class _Refused(Exception):
    """Something does not fit: what was written is undone."""


class Materialise:
    """The writer of one transaction."""

    def __init__(self, session: Session, state: SqlState, rows: Rows, instance: str, is_new: bool = False, sees_all: bool = True) -> None:
        """`sees_all`: nothing was committed beside it that it does not see, so that what is in the way of its rows does not fit."""
        self.session = session
        self.state = state
        self.rows = rows
        self.instance = instance
        self.authority: Authority = state.authority
        self.is_new = is_new
        self.sees_all = sees_all
        self.fit = Fit(session, rows, self.authority, instance)
        self.ground = Ground(session, rows, self.authority, instance)
        self._batch, self._now_ms = "", 0
        self._has_parked = False
        self._aside: dict[Fact, str] = {}
        """What waits by itself, and why."""
        self._absent: set[Fact] = set()
        """Those of them that have no row here, so that what hangs on them has none either."""
        self._begin()

    def _begin(self) -> None:
        """For each try, since what the last one staged was undone with it."""
        stage = Stage(self.session)
        self.inserts = Inserts(self.session, stage, self.is_new)
        self.closing = Closing(self.session, stage)
        self.removal = Removal(self.session, self.rows, stage, self.authority, self.instance)
        self.rows.forget_rses()
        self.state.changes.forget(COLLECTIONS, OPENED, GONE)
        self._reasons: dict[Fact, str] = {}
        self._lacking: set[Fact] = set()
        self._keeps = False
        self._news, self._whys = 0, set[str]()

    def run(self, batch: str, now_ms: int) -> bool:
        """Write what changed (`SqlState.changes`), or park it; tells whether all of it is written. Raises Unseen."""
        self._batch, self._now_ms = batch, now_ms
        self._has_parked = parked.any_(self.session)
        if self._has_parked:
            self._join_batches()
        while not self._try():
            self._begin()
        if self._news:
            LOG.warning("parked %d facts of changeset %s: %s", self._news, batch, "; ".join(sorted(self._whys)[:3]))
        self.state.changes.clear()
        return not self._reasons and not self._keeps and not self._aside

    def _try(self) -> bool:
        """Write all that does not wait by itself, or park it; False when more of it can wait by itself than was known."""
        try:
            with self.session.begin_nested():
                self._write()
                if self._reasons:
                    raise _Refused
                self._announce()
        except _Refused:
            if self._leave_out():
                return False
            self._park_all()
        except (DBAPIError, OverflowError, RucioException) as error:
            if not _is_about_the_rows(error):
                raise
            why = str(error.orig if isinstance(error, DBAPIError) else error).partition("\n")[0]  # without values, the time among them
            if not self.sees_all and met_others(error):
                raise Unseen(f"changeset {self._batch} met rows that were committed since it was begun: {why}") from error
            LOG.exception("changeset %s cannot be written here", self._batch)
            self._reasons = {self._first(): f"Rucio refused the rows: {why[:500]}"}
            self._park_all()
        return True

    def _join_batches(self) -> None:
        """What waits in a batch with something that changed, or that it needs, is tried with it. An RSE that fits is not held up by a
        batch that does not: that of a replica is looked at by itself."""
        changes = self.state.changes
        joined: set[str] = set()
        for kind in FACTS:
            for part in changes.parts(kind):
                needed = {need for fact in part for need in ends_of(fact) if not isinstance(need, Rse)}
                for name in parked.batches_with(self.session, part.keys() | needed) - joined:
                    joined.add(name)
                    parked.list_batch(self.session, name, changes)

    # ---- writing

    def _write(self) -> None:
        """In foreign-key order: what others refer to comes first and goes last."""
        for kind in FACTS:
            for part in self.state.changes.parts(kind):
                self._write_part(kind, part)
            if kind == fields.DID:
                failpoint("rows-dids")
            if kind == fields.CONSTITUENT:
                failpoint("rows-contents")
        failpoint("rows-replicas")
        self._close()
        failpoint("rows-closed")
        self._open_data()
        failpoint("rows-open-data")
        for part in self._waiting(GONE):
            dids = [did for did in part if isinstance(did, Did)]
            leaving = self.removal.leaving(dids)
            metadata.let_go(self.session, self.state.about, leaving)
            self._keep(self.removal.dids(leaving), dids)
        failpoint("rows-removed")

    @collector_paused()
    def _write_part(self, kind: int, part: Entries) -> None:
        if self._aside:
            part = self._without_aside(part)
        private = self.fit.closed_off(part.keys())
        self._refuse({fact: reason for fact, reason in private.items() if part[fact] is not None})
        different = {fact: entry for fact, entry in part.items() if fact not in private} if private else part
        actual: Actual = {}
        if kind not in _COMPARED_IN_SQL:
            actual = self.rows.read(different.keys())
            different = {fact: entry for fact, entry in different.items() if not matches(entry, actual.get(fact))}
        wanted = {fact: entry for fact, entry in different.items() if entry is not None}
        gone = self._ever_here([fact for fact, entry in different.items() if entry is None])
        self._refuse(self.fit.reasons(kind, wanted, actual))
        if kind == fields.ATTACHMENT:
            self.closing.changed({fact.parent for fact in _of(Attachment, different)})
        if self._reasons:
            return
        if self._has_parked:
            parked.release(self.session, part.keys() - set(gone))
        _WRITERS[kind](self, wanted, gone, actual)

    def _ever_here(self, gone: list[Fact]) -> list[Fact]:
        """Without those that waited all the time: a row of such a name is another one, of local users'."""
        if not self._has_parked or not gone:
            return gone
        never = parked.among(self.session, gone, had_row=(False,))
        return [fact for fact in gone if fact not in never]

    def _ground(self, wanted: Actual, gone: Collection[Fact], actual: Actual) -> None:
        self.ground.lay(wanted, actual)
        self._release(gone)

    def _dids(self, wanted: Actual, gone: Collection[Fact], actual: Actual) -> None:
        entries = {did: entry for did, entry in wanted.items() if isinstance(did, Did) and isinstance(entry, DidEntry)}
        new = {did: entry for did, entry in entries.items() if did not in actual}
        self.ground.lay({did: entry for did, entry in new.items()}, {})
        self.inserts.dids(new, self.ground.account)
        metadata.write(self.session, wanted, actual)
        changes = self.state.changes
        changes.add((did for did, entry in entries.items() if entry.closed is not None), COLLECTIONS)
        changes.add(opendata.changed(wanted, gone, actual), OPENED)
        changes.add(gone, GONE)

    def _attachments(self, wanted: Actual, gone: Collection[Fact], actual: Actual) -> None:
        self.removal.attachments(_of(Attachment, gone))
        self._release(gone)
        failpoint("rows-detached")
        self._refuse_lacking(self.inserts.attach(_of(Attachment, wanted)))

    def _constituents(self, wanted: Actual, gone: Collection[Fact], actual: Actual) -> None:
        constituents.remove(self.session, _of(Constituent, gone))
        self._release(gone)
        added = _of(Constituent, wanted)
        here = self.rows.read_dids({end for one in added for end in (one.archive, one.child)})
        self._refuse_lacking(next((one for one in added if one.archive not in here or one.child not in here), None))
        if not self._reasons:
            constituents.add(self.session, added)

    def _replicas(self, wanted: Actual, gone: Collection[Fact], actual: Actual) -> None:
        self._keep(self.removal.replicas(_of(Replica, gone)), gone)
        foreign: dict[Replica, ReplicaEntry] = {r: entry for r, entry in wanted.items() if r[3] != self.instance}  # type: ignore[misc]
        rses = {Rse(*place) for place in {replica[3:] for replica in foreign}}
        if self._has_places(rses):
            rse_ids = {(rse.instance, rse.rse): local.id for rse in rses if (local := self.rows.rse_of(rse)) is not None}
            self._refuse_lacking(self.inserts.replicas(foreign, rse_ids))

    def _has_places(self, rses: set[Rse]) -> bool:
        """Whether these RSEs are here; those that are not yet are made now."""
        missing = {rse for rse in rses if self.rows.rse_of(rse) is None}
        entries = self.state.entries(missing)
        self._refuse(self.fit.reasons(fields.RSE, entries, {}))
        self._refuse({rse: f"{rse} is not in this Rucio" for rse in missing - entries.keys()})
        if self._reasons:
            return False
        self.ground.lay(entries, {})
        self._release(missing)
        return True

    def _close(self) -> None:
        """Close and reopen, and count anew what is in closed collections."""
        for part in self._waiting(COLLECTIONS):
            entries = {did: entry for did, entry in part.items() if isinstance(did, Did) and isinstance(entry, DidEntry)}
            rows = self.rows.read_dids(entries)
            opening = {did for did, entry in entries.items() if not entry.closed and did in rows and rows[did].closed}
            opening -= self._closed_by_me(opening)
            self.closing.set_open(opening, True)
            self.closing.set_open([did for did, entry in entries.items() if entry.closed and did in rows and not rows[did].closed], False)
        if not self._reasons:
            self.closing.recount()

    def _closed_by_me(self, dids: Collection[Did]) -> set[Fact]:
        """Those that this instance, a guest, closed or published, unacknowledged by their home (R5.6): their rows stay closed."""
        me = self.authority.charter.by_name(self.instance)
        assert me is not None, "the configuration names an instance of the charter"
        wanted = [key(did) for did in dids for key in (close_key, open_data_key)]
        return {key.fact for key in self.state.waiting(me.author, wanted) if isinstance(key, Attribute)}

    def _open_data(self) -> None:
        """Names are given up by all before any is taken."""
        for part in self._waiting(OPENED):
            opendata.release_names(self.session, part, self.rows.read(part.keys()), partial(is_home, self.authority, self.instance))
        for part in self._waiting(OPENED):
            shown = {fact: entry for fact, entry in part.items() if entry is not None}
            self._refuse(self.fit.taken(shown))
            if not self._reasons:
                opendata.write(self.session, shown, self.rows.read(shown.keys()))

    def _announce(self) -> None:
        """One message for hermes (Rucio's own say one for each DID), so that who listens there hears of what others shared."""
        added, removed = +self.inserts.written, +self.removal.removed
        if added or removed:
            add_message("NSYNC_CHANGESET", {"changeset": self._batch, "added": added, "removed": removed}, session=self.session)

    def _waiting(self, list_: int) -> Any:
        return self.state.changes.parts(list_) if not self._reasons else ()

    # ---- what does not fit, and what stays

    def _refuse(self, reasons: Mapping[Fact, str]) -> None:
        for fact, reason in reasons.items():
            if len(self._reasons) >= (ASIDE_MAX if self._batch.endswith(parked.REST) else REASONS_MAX):
                return
            self._reasons[fact] = reason

    def _refuse_lacking(self, fact: Optional[Fact]) -> None:
        """`fact` could not be written, since something that it needs is not here because it is parked: it waits with it (by key, R7.6)."""
        if fact is not None:
            here = self.rows.read(ends_of(fact))
            lacking = next(need for need in ends_of(fact) if need not in here)
            self._lacking.add(lacking)
            self._refuse({fact: f"{parked.WAITS_FOR}{lacking}, which is not in this Rucio"})

    def _keep(self, kept: Mapping[Any, str], gone: Collection[Fact]) -> None:
        """Tell what of `gone` stays here."""
        self._release([fact for fact in gone if fact not in kept])
        if kept:
            self._keeps = True
            self._park(kept, kept, f"{parked.base(self._batch)}{parked.LEFT}", kept)

    def _leave_out(self) -> bool:
        """Whether all that was refused may wait by itself; it is left out then, and the rest can be tried."""
        refused = self._reasons.keys() - self._aside.keys()
        if not self._has_parked or not refused or len(self._aside) >= ASIDE_MAX or refused != parked.aside(self.session, refused):
            return False
        self.rows.forget_rses()
        entries, actual = self.state.entries(refused), self.rows.read(refused)
        self._aside.update((fact, self._reasons[fact]) for fact in refused)
        self._absent |= {fact for fact in refused if not _is_of(actual.get(fact), entries.get(fact))} | self._lacking
        return True

    def _without_aside(self, part: Entries) -> Entries:
        """Without what waits by itself, and what hangs on it by key, which is told to wait too."""
        reasons = {fact: reason for fact, entry in part.items() if entry is not None and (reason := self._why_aside(fact)) is not None}
        if not reasons:
            return part
        actual = self.rows.read(reasons)
        waits = {fact: reason for fact, reason in reasons.items() if fact in self._aside or fact not in actual}
        had_row = {fact for fact in waits if _is_of(actual.get(fact), part[fact])}
        self._release(reasons.keys() - waits.keys())
        self._set_aside(waits, had_row)
        return {fact: entry for fact, entry in part.items() if fact not in reasons}

    def _why_aside(self, fact: Fact) -> Optional[str]:
        if fact in self._aside:
            return self._aside[fact]
        end = next((end for end in ends_of(fact) if end in self._absent), None)
        return f"{parked.WAITS_FOR}{end}, which does not fit here" if end is not None else None

    def _set_aside(self, reasons: Mapping[Fact, str], had_row: Collection[Fact]) -> None:
        if reasons and parked.set_aside(self.session, self._batch, reasons, self._now_ms, had_row):
            LOG.warning("%d facts wait by themselves, as accepted: %s", len(reasons), "; ".join(sorted(set(reasons.values()))[:3]))

    def _release(self, facts: Collection[Fact]) -> None:
        if self._has_parked:
            parked.release(self.session, facts)

    def _first(self) -> Fact:
        """The fact that stands for all of them."""
        return next(min(part, key=key_bytes) for kind in FACTS for part in self.state.changes.parts(kind) if part)

    def _park_all(self) -> None:
        """Park what differs from its row, with the reasons; what agrees waits no more, and what waits by itself goes on doing so."""
        self.rows.forget_rses()
        for kind in FACTS:
            for part in self.state.changes.parts(kind):
                actual, private = self.rows.read(part.keys()), self.fit.closed_off(part.keys())
                shut = {fact for fact in private if part[fact] is not None}
                waits = {fact for fact, entry in part.items() if fact not in private and not matches(entry, actual.get(fact))} | shut
                waits |= part.keys() & self._reasons.keys()
                had_row = {fact for fact in waits if _is_of(actual.get(fact), part[fact])}
                self._release(part.keys() - waits)
                aside = parked.aside(self.session, waits) if self._has_parked else set()
                self._set_aside({fact: self._reasons[fact] for fact in aside & self._reasons.keys()}, had_row)
                self._park(waits - aside, self._reasons, self._batch.removesuffix(parked.REST), had_row)

    def _park(self, facts: Collection[Fact], reasons: Mapping[Any, str], batch: str, had_row: Collection[Fact] = ()) -> None:
        if facts and parked.park(self.session, batch, facts, reasons, self._now_ms, had_row):
            self._news += len(facts)
            self._whys.update(reasons.values())


_WRITERS = {
    fields.SCOPE: Materialise._ground,
    fields.RSE: Materialise._ground,
    fields.DID: Materialise._dids,
    fields.ATTACHMENT: Materialise._attachments,
    fields.CONSTITUENT: Materialise._constituents,
    fields.REPLICA: Materialise._replicas,
}
_COMPARED_IN_SQL = (fields.ATTACHMENT, fields.REPLICA)
"""Kinds whose rows need not be read to see what is different, since nothing of them could be in the way."""


def _of(kind: type[T], facts: Collection[Fact]) -> list[T]:
    return [fact for fact in facts if isinstance(fact, kind)]


def _is_of(row: Any, entry: Any) -> bool:
    """Whether `row` is what `entry` shows, in another state perhaps, and not another DID of its name."""
    if isinstance(row, DidEntry) and isinstance(entry, DidEntry):
        return row.identity.agrees(entry.identity)
    return row is not None and entry is not None


def _is_about_the_rows(error: Exception) -> bool:
    """Whether Rucio refused what the rows say, so that another try would fail too; else the database failed, and it is tried again."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (IntegrityError, DataError)) or "integer overflow" in str(error.orig)  # SQLite's sum() of sizes
    return True
