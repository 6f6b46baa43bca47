"""Full audits: what may be shared goes into the outbox, part by part, whatever the triggers have seen of it (R7.1).

An audit runs where a mark in nsync_audit asks for one: after an installation, for a scope that is newly shared, when a trigger failed, when
an operator wants it, and from time to time. It names
- every row in the scopes that are shared, and every row elsewhere that hangs on a DID which the catalogue shows and this instance may
  write about; all open data; all RSEs; so that what was changed unseen is found,
- everything of those scopes that the catalogue shows and no row stands for, so that what was deleted unseen is found.

Names only, so what is right already makes no op, and an audit too many costs reading. Each part is one INSERT … SELECT of at most
ROWS_MAX rows, or what `--bulk` says, in the order of an index; `place` in the mark tells where the next one begins, so an audit
survives restarts.

What a transaction of PostgreSQL changed before its trigger knew of the mark's cause is seen only when it commits. So an audit begins
when everything that ran at its first look has ended.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from nsync.namespace.keys import Attribute, Did, Scope, scope_of
from nsync.rucio_bridge.captured import ATTACHMENT, CAPTURED, CLOSURE, CONSTITUENT, DID, REPLICA, outbox_row, rse_ids
from nsync.rucio_bridge.scopes import swapped
from nsync.store import kept, schema
from nsync.store.database import chunks
from nsync.store.keyed import key_in

LOG = logging.getLogger(__name__)

ROWS_MAX = 5000
"""What goes into the outbox at once, and so into a changeset: the write lock is held for some tenths of a second."""

PAUSE_MS = 600_000
"""Between two audits that a failing trigger asks for: one that always fails must not keep the node at it."""

PERIODIC = "from time to time"
PUBLISHED = "data became public"

ROOTS_MAX = 1000
"""DIDs in one mark."""

_AUDITED = "audited"
"""The kept value: when the last full audit ended (ms)."""

_BY_TABLE = {one.table: one for one in CAPTURED}
_IN_A_SCOPE = ("scopes", "dids", "contents", "archive_contents", "replicas")
_ORDER = {"scopes": "scope", "rses": "rse", "dids_opendata": "scope, name", "contents": "name, child_scope, child_name"}
_ORDER["archive_contents"] = _ORDER["contents"]
_SHOWN = "nsync_entry"

Unit = tuple[str, Optional[str]]
"""A table to look through, and in which scope."""

MayWrite = Callable[[str], bool]
"""Whether the charter lets this instance write in a scope."""


class _Place(NamedTuple):
    """How far an audit has come: in which unit, and after what; or, before it began, after which transaction it may."""

    unit: Optional[Unit] = None
    after: Sequence[str] = ()
    transaction: Optional[int] = None


# ---- marks


def ask(connection: Connection, reason: str, scope: Optional[str] = None) -> None:
    """Leave a mark that everything that may be shared, or all of `scope`, must be looked at, soon."""
    connection.execute(insert(schema.audit).values(reason=reason, scope=scope))
    if scope is None:
        connection.execute(delete(schema.kept).where(schema.kept.c.name == _AUDITED))


def look_again(connection: Connection, dids: Collection[Did]) -> None:
    """Leave marks that `dids` with all that is in them must be looked at once more, when the transactions that run now have ended.

    Where a scope is not watched, triggers know of a DID when the transaction that shows it has committed, and what others changed
    meanwhile is in no snapshot of it."""
    for some in chunks(sorted(dids), ROOTS_MAX):
        names = json.dumps([(swapped(did.scope), did.name) for did in some])
        connection.execute(insert(schema.audit).values(reason=PUBLISHED, roots=names))


def waits(connection: Connection, now_ms: int) -> Optional[str]:
    """Why there is something to audit now, or None."""
    mark = _next(connection, now_ms)
    return None if mark is None else str(mark.reason)


def pending(connection: Connection) -> list[str]:
    """What is asked for, in words, and how far it is."""
    found = []
    for mark in connection.execute(select(schema.audit).order_by(schema.audit.c.id)):
        place, scope = _place_of(mark), "" if mark.scope is None else f" (scope {mark.scope})"
        begun = "" if place.unit is None else ": begun"
        waits = "" if place.transaction is None else f": when transactions of this database before {place.transaction} have ended"
        found.append(f"{mark.reason}{scope}{begun}{waits}")
    return found


def is_old(connection: Connection, now_ms: int, interval_ms: int) -> bool:
    """Whether the last full audit ended longer than `interval_ms` ago; never where that is 0."""
    ended = kept.read(connection, _AUDITED) if interval_ms else None
    if ended is None:
        return False
    return not 0 <= now_ms - int(ended) < interval_ms


def ask_if_old(connection: Connection, now_ms: int, interval_ms: int) -> None:
    """Leave a mark when it is, and there is none."""
    if is_old(connection, now_ms, interval_ms) and connection.execute(select(schema.audit.c.id)).first() is None:
        connection.execute(insert(schema.audit).values(reason=PERIODIC))


def _next(connection: Connection, now_ms: int) -> Optional[Row[Any]]:
    """The mark to go on with: one that was begun, or the first, unless the last audit has just ended; then what is looked at again."""
    columns = schema.audit.c
    query = select(schema.audit).order_by(columns.place.is_(None), columns.id).limit(1)
    mark = connection.execute(query.where(columns.roots.is_(None))).first()
    if mark is None or _pauses(connection, mark, now_ms):
        mark = connection.execute(query.where(columns.roots.is_not(None))).first()
    return mark


def _pauses(connection: Connection, mark: Row[Any], now_ms: int) -> bool:
    """Whether a full audit is asked for right after the last one."""
    if mark.place is not None or mark.scope is not None or mark.reason == PERIODIC:
        return False
    ended = kept.read(connection, _AUDITED)
    return ended is not None and 0 <= now_ms - int(ended) < PAUSE_MS


# ---- the audit


def fill(connection: Connection, instance: str, may_write: MayWrite, now_ms: int, rows_max: int = ROWS_MAX) -> bool:
    """Put the next part, of `rows_max` rows, into the outbox; tells whether there is one, and no older transaction is waited for."""
    mark = _next(connection, now_ms)
    if mark is None:
        return False
    place = _place_of(mark)
    if place.unit is None and not _begin(connection, mark, place):
        return False
    if mark.roots is None:
        _Audit(connection, instance, may_write, mark).run(place, now_ms, rows_max)
        return True
    rows = [{"kind": CLOSURE, "a": scope, "b": name} for scope, name in json.loads(mark.roots)]
    connection.execute(insert(schema.outbox), rows)
    connection.execute(delete(schema.audit).where(schema.audit.c.id == mark.id))
    return True


def _place_of(mark: Row[Any]) -> _Place:
    if mark.place is None:
        return _Place()
    unit, after, transaction = json.loads(mark.place)
    return _Place(None if unit is None else (unit[0], unit[1]), after, transaction)


def _begin(connection: Connection, mark: Row[Any], place: _Place) -> bool:
    """Whether all that ran when the mark was first seen has ended. Full audits begin for all the marks that there are.

    All that ran then has a number below this transaction's own; the end of a snapshot may be below that of one that runs."""
    if connection.dialect.name == "postgresql":
        oldest, own = connection.execute(_RUNNING).one()
        if oldest < (own if place.transaction is None else place.transaction):
            if place.transaction is None:
                _put_down(connection, mark, _Place(transaction=own))
                LOG.info("to be looked at when the transactions that run now have ended: %s", mark.reason)
            return False
    if mark.scope is None and mark.roots is None:
        LOG.info("everything that may be shared is looked at: %s", mark.reason)
        connection.execute(delete(schema.audit).where(schema.audit.c.id != mark.id))
    return True


_RUNNING = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint")


def _put_down(connection: Connection, mark: Row[Any], place: _Place) -> None:
    connection.execute(update(schema.audit).where(schema.audit.c.id == mark.id).values(place=json.dumps(place)))


class _Audit:
    """One part of one audit."""

    def __init__(self, connection: Connection, instance: str, may_write: MayWrite, mark: Row[Any]) -> None:
        self.connection = connection
        self.instance = instance
        self.may_write = may_write
        self.mark = mark

    def run(self, place: _Place, now_ms: int, rows_max: int) -> None:
        """Fill up one part from `place` on."""
        units = list(self._units())
        start = units.index(place.unit) if place.unit in units else 0
        after, room = place.after if place.unit in units else (), rows_max
        for unit in units[start:]:
            found, last = self._shown(after, room) if unit[0] == _SHOWN else self._rows(unit, after, room)
            if last is not None:
                _put_down(self.connection, self.mark, _Place(unit, last))
                return
            after, room = (), max(1, room - found)
        self.connection.execute(delete(schema.audit).where(schema.audit.c.id == self.mark.id))
        if self.mark.scope is None:
            kept.write(self.connection, _AUDITED, b"%d" % now_ms)
            LOG.info("everything that may be shared was looked at")

    def _units(self) -> Iterator[Unit]:
        if self.mark.scope is not None:
            yield from ((table, self.mark.scope) for table in _IN_A_SCOPE)
            return
        yield from (("rses", None), ("dids_opendata", None))
        yield from ((table, scope) for scope in self._scopes() for table in _IN_A_SCOPE)
        yield (_SHOWN, None)

    def _scopes(self) -> Sequence[str]:
        """Those that are shared, and those of which the catalogue shows something and this instance may say it."""
        shared = set(self.connection.execute(select(schema.shared_scope.c.scope)).scalars())
        shown = self.connection.execute(select(schema.entry.c.scope).where(schema.entry.c.kind == 1, schema.entry.c.scope.is_not(None)))
        return sorted(shared | {scope for scope in shown.scalars() if self.may_write(scope) and swapped(scope) == scope})

    def _rows(self, unit: Unit, after: Sequence[str], room: int) -> tuple[int, Optional[Sequence[str]]]:
        """How many rows were named, and the last one where there may be more."""
        table, scope = unit
        one, order = _BY_TABLE[table], _ORDER.get(table, "name")
        columns = order.split(", ")
        where = one.shared.format(row="r", schema="")
        values: dict[str, Any] = {f"after{i}": value for i, value in enumerate(after)}
        if scope is not None:
            where, values["scope"] = f"r.scope = :scope AND {where}", scope
        if after:
            where += f" AND ({order}) > ({', '.join(f':after{i}' for i in range(len(after)))})"
        last = self.connection.execute(
            text(f"SELECT {order} FROM {table} r WHERE {where} ORDER BY {order} LIMIT 1 OFFSET :skipped"), {**values, "skipped": room - 1}
        ).first()
        if last is not None:
            where += f" AND ({order}) <= ({', '.join(f':last{i}' for i in range(len(columns)))})"
            values.update({f"last{i}": value for i, value in enumerate(last)})
        done = self.connection.execute(text(one.named(where)), values)
        return done.rowcount, None if last is None else list(map(str, last))

    # ---- what the catalogue shows

    @property
    def _rse_id(self) -> str:
        return "CAST(nsync_outbox.c AS uuid)" if self.connection.dialect.name == "postgresql" else "nsync_outbox.c"

    def _shown(self, after: Sequence[str], room: int) -> tuple[int, Optional[Sequence[str]]]:
        """The same for what the catalogue shows of the audited scopes, where no row stands for it."""
        columns = schema.entry.c
        query = select(columns.key, columns.whole).order_by(columns.key).limit(room)
        page = self.connection.execute(query.where(columns.key > bytes.fromhex(after[0])) if after else query).all()
        scopes = set(self._scopes())
        rses = rse_ids(self.connection)
        keys = [key for key in map(key_in, page) if scope_of(key) in scopes and not isinstance(key, (Scope, Attribute))]
        named = [row for row in (outbox_row(key, self.instance, rses) for key in keys) if row is not None]
        if named:
            last = self.connection.execute(select(func.coalesce(func.max(schema.outbox.c.id), 0))).scalar_one()
            self.connection.execute(insert(schema.outbox), [dict(zip(("kind", *"abcd"), row)) for row in named])
            for kind, there in _THERE.items():
                sql = f"DELETE FROM nsync_outbox WHERE id > :last AND kind = '{kind}' AND EXISTS (SELECT 1 FROM {there})"
                self.connection.execute(text(sql.format(rse_id=self._rse_id)), {"last": last})
        return len(page), [bytes(page[-1].key).hex()] if len(page) == room else None


_EDGE = "r.scope = nsync_outbox.a AND r.name = nsync_outbox.b AND r.child_scope = nsync_outbox.c AND r.child_name = nsync_outbox.d"
_THERE = {
    DID: "dids r WHERE r.scope = nsync_outbox.a AND r.name = nsync_outbox.b",
    ATTACHMENT: f"contents r WHERE {_EDGE}",
    CONSTITUENT: f"archive_contents r WHERE {_EDGE}",
    REPLICA: "replicas r WHERE r.scope = nsync_outbox.a AND r.name = nsync_outbox.b AND r.rse_id = {rse_id}",
}
"""The row that an outbox row names."""
