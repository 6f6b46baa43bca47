"""Real Rucio databases in one process: copies of a template, driven by Rucio's core with an explicit `session=`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rucio.common.exception import RucioException
from rucio.common.types import InternalAccount, InternalScope
from rucio.core import did as core_did
from rucio.core import opendata, replica
from rucio.core.rse import get_rse_id
from rucio.core.rule import add_rule
from rucio.core.scope import add_scope
from rucio.db.sqla.constants import DIDType, OpenDataDIDState
from sqlalchemy import CursorResult, Engine, Table, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from nsync.auth.keys import verify
from nsync.authority.charter import Place
from nsync.catalogue.entries import Conflict, Entry
from nsync.namespace.keys import Fact
from nsync.namespace.ops import Statement, encode_op
from nsync.rucio_bridge import parked, scopes, triggers
from nsync.rucio_bridge.bridge import Bridge
from nsync.rucio_bridge.rows import Rows
from nsync.rucio_bridge.snapshot import shared_rows
from nsync.store import migrations, schema
from nsync.store.database import begin_writing, writing
from nsync.store.keyed import keys_in
from nsync.store.log import SqlLog
from nsync.store.state import SqlState
from tests.support.federation import AUTHORITY, CHARTER, KEYS

ROOT = InternalAccount("root")
EXPRESSION = "OpenData=True"

REFUSALS = (RucioException, IntegrityError)
"""What Rucio's core raises for an operation that it does not allow."""


def engine_of(path: Path, durable: bool = True) -> Engine:
    """`durable=False` leaves out the syncs to disk: for tests that end no process."""
    engine = create_engine(f"sqlite+nsync:///{path}")
    if not durable:
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    return engine


def install(path: Path) -> None:
    """nsync's tables and triggers in the Rucio database at `path`."""
    engine = engine_of(path)
    migrations.upgrade(engine)
    with writing(engine) as connection:
        triggers.install(connection)
    engine.dispose()


class Instance:
    """One instance: its database, its bridge, and what its users do."""

    def __init__(self, template: Path, directory: Path, name: str, shared: Sequence[str] = (), durable: bool = True) -> None:
        self.name = name
        self.path = directory / f"{name}.db"
        shutil.copyfile(template, self.path)
        self.engine = engine_of(self.path, durable)
        self.sessions = sessionmaker(bind=self.engine)
        me = CHARTER.by_name(name)
        assert me is not None
        self.bridge = Bridge(self.engine, AUTHORITY, me, KEYS[name].sign, verify, EXPRESSION)
        self.bridge.share(shared)
        self.now_ms = 1_700_000_000_000

    def close(self) -> None:
        self.engine.dispose()

    def checkpoint(self) -> None:
        """Bring everything into the one file, so that it can be copied."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    # ---- the node's part

    def work(self) -> int:
        """Everything there is to do; returns how many changesets took effect."""
        done = 0
        while True:
            self.now_ms += 1000
            worked = self.bridge.work(self.now_ms)
            if worked.idle:
                return done
            done += len(worked.applied)

    def fetch(self, other: Instance) -> tuple[str, ...]:
        """Store everything that `other` has and this one lacks; returns what was refused."""
        rejected: tuple[str, ...] = ()
        while True:
            have = {head.author: self.bridge.locator(head.author) for head in other.bridge.heads()}
            frames = [segment.frame for segment in other.bridge.segments_after(have, 1 << 30)]
            receipt = self.bridge.receive(frames, other.name)
            rejected += receipt.rejected
            if not receipt.stored:
                return rejected

    def rows(self) -> dict[str, frozenset[tuple[object, ...]]]:
        with self.engine.connect() as connection:
            return shared_rows(connection, self.name)

    def query(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), values)]

    def edit(self, *statements: str, unheard: bool = False, **values: Any) -> None:
        """SQL that no Rucio runs, as by hand; `unheard`: as if there were no triggers. Each statement must change something."""
        with self.sessions.begin() as session, triggers.unheard(session.connection()) if unheard else nullcontext():
            for sql in statements:
                changed: CursorResult[Any] = session.execute(text(sql), values)  # type: ignore[assignment]
                assert changed.rowcount, f"{sql}: an edit that changes nothing shows nothing"

    def names(self, scope: str) -> set[str]:
        """The DIDs of `scope`."""
        return {str(name) for (name,) in self.query("SELECT name FROM dids WHERE scope = :scope", scope=scope)}

    def children(self, scope: str, name: str) -> set[str]:
        """The names of what is attached."""
        query = "SELECT child_name FROM contents WHERE scope = :scope AND name = :name"
        return {str(child) for (child,) in self.query(query, scope=scope, name=name)}

    def segments(self, author: bytes) -> int:
        """How many segments of `author` are stored here."""
        count = "SELECT count(*) FROM nsync_segment s JOIN nsync_branch b ON b.id = s.branch WHERE b.author = :author"
        return int(self.query(count, author=author)[0][0])

    def frames(self) -> list[bytes]:
        """All that is stored here, in the order in which it came."""
        have: dict[bytes, list[Place]] = {head.author: [] for head in self.bridge.heads()}
        found: list[bytes] = []
        while batch := self.bridge.segments_after(have, 1 << 30):
            for segment in batch:
                have[segment.author].append(Place(segment.last, segment.hash))
            found += [segment.frame for segment in batch]
        return found

    def publish(self, *statements: Statement) -> None:
        """Sign statements that no row of Rucio makes."""
        with self.sessions.begin() as session:
            begin_writing(session.connection())
            me = self.bridge.me
            SqlLog(session.connection(), self.bridge.authority).publish(
                [encode_op(statements)], me.author, KEYS[self.name].sign, self.now_ms
            )

    # ---- what it shows

    def catalogue(self) -> dict[Fact, Entry]:
        """The catalogue as this instance has it."""
        return self.state(lambda state, keys: state.entries(keys), schema.entry)

    def conflicts(self) -> dict[Fact, list[Conflict]]:
        return self.state(lambda state, keys: state.conflicts(keys), schema.conflict)

    def state(self, ask: Callable[[SqlState, set[Any]], Any], table: Table) -> Any:
        """What `ask` finds out about every key in `table`."""
        with self.engine.connect() as connection:
            return ask(SqlLog(connection, self.bridge.authority).state, keys_in(connection, table))

    def parked(self) -> dict[Fact, str]:
        """What waits for the operator, with the reasons."""
        with self.sessions() as session:
            return {waiting.fact: waiting.reason for waiting in parked.listing(session)}

    def written(self, facts: Collection[Fact]) -> dict[Fact, Entry]:
        """The rows of `facts`, as entries."""
        with self.sessions() as session, scopes.in_force(session.connection()):
            return dict(Rows(session, self.name, EXPRESSION).read(facts))

    # ---- the users' part

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.sessions.begin() as session:
            yield session

    def add_scope(self, scope: str) -> None:
        with self.session() as session:
            add_scope(InternalScope(scope), ROOT, session=session)

    def add_files(self, scope: str, names: Sequence[str], size: int = 10, adler32: str = "00000001") -> None:
        with self.session() as session:
            files = [{"scope": InternalScope(scope), "name": name, "bytes": size, "adler32": adler32} for name in names]
            replica.add_replicas(get_rse_id("DISK", session=session), files, ROOT, session=session)

    def add_did(self, scope: str, name: str, did_type: DIDType = DIDType.DATASET) -> None:
        with self.session() as session:
            core_did.add_did(InternalScope(scope), name, did_type, ROOT, session=session)

    def attach(self, scope: str, name: str, children: Sequence[tuple[str, str]]) -> None:
        with self.session() as session:
            dids = [{"scope": InternalScope(s), "name": n} for s, n in children]
            core_did.attach_dids(InternalScope(scope), name, dids, ROOT, session=session)

    def detach(self, scope: str, name: str, children: Sequence[tuple[str, str]]) -> None:
        with self.session() as session:
            core_did.detach_dids(InternalScope(scope), name, [{"scope": InternalScope(s), "name": n} for s, n in children], session=session)

    def set_open(self, scope: str, name: str, is_open: bool) -> None:
        with self.session() as session:
            core_did.set_status(InternalScope(scope), name, open=is_open, session=session)

    def add_open_data(self, scope: str, name: str) -> None:
        with self.session() as session:
            opendata.add_opendata_did(scope=InternalScope(scope), name=name, session=session)

    def set_open_data(self, scope: str, name: str, state: OpenDataDIDState | None = None, doi: str | None = None) -> None:
        with self.session() as session:
            opendata.update_opendata_did(scope=InternalScope(scope), name=name, state=state, doi=doi, session=session)

    def delete_replicas(self, scope: str, names: Sequence[str]) -> None:
        """As the reaper does, with Rucio's own clean-up: the last replica takes its file along."""
        with self.session() as session:
            files = [{"scope": InternalScope(scope), "name": name} for name in names]
            replica.delete_replicas(get_rse_id("DISK", session=session), files, session=session)

    def delete_did(self, scope: str, name: str) -> None:
        """As the undertaker does."""
        with self.session() as session:
            did = core_did.get_did(InternalScope(scope), name, session=session)
            did_type = did["type"]
            gone = {"scope": InternalScope(scope), "name": name, "did_type": did_type, "purge_replicas": True}
            core_did.delete_dids([gone], ROOT, session=session)

    def add_rule(self, scope: str, name: str) -> str:
        """A local rule that wants a copy at DISK."""
        with self.session() as session:
            dids = [{"scope": InternalScope(scope), "name": name}]
            (made,) = add_rule(dids, ROOT, 1, "DISK", "NONE", None, None, False, None, session=session)
            return str(made)

    def publish_dataset(self, scope: str, name: str, files: int = 3, doi: str | None = None) -> None:
        """A closed dataset of files, made public."""
        names = [f"{name}.f{i}" for i in range(files)]
        self.add_files(scope, names)
        self.add_did(scope, name)
        self.attach(scope, name, [(scope, n) for n in names])
        self.set_open(scope, name, False)
        self.add_open_data(scope, name)
        if doi is not None:
            self.set_open_data(scope, name, doi=doi)
        self.set_open_data(scope, name, state=OpenDataDIDState.PUBLIC)


def cycle(at: Instance, scope: str, number: int) -> Iterator[None]:
    """What users do between two changesets."""
    public, changing, container = f"public{number}", f"changing{number}", f"container{number}"
    at.publish_dataset(scope, public, files=6, doi=f"10.5072/{scope.upper()}.{number}")
    yield
    names = [f"{changing}.f{i}" for i in range(3)]
    at.add_files(scope, names)
    at.add_did(scope, changing)
    at.attach(scope, changing, [(scope, name) for name in names])
    at.add_did(scope, container, DIDType.CONTAINER)
    at.attach(scope, container, [(scope, public), (scope, changing)])
    yield
    at.detach(scope, changing, [(scope, names[0])])
    at.attach(scope, changing, [(scope, f"{public}.f0")])
    at.set_open(scope, changing, False)
    at.detach(scope, container, [(scope, public)])
    at.delete_replicas(scope, names[:1])
    at.set_open_data(scope, public, state=OpenDataDIDState.SUSPENDED)
    yield


def everything(instance: Instance) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table; on PostgreSQL with the transaction that wrote it, so that a row which was written anew is another."""
    if instance.engine.dialect.name == "postgresql":
        tables, row = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", "xmin::text, r.*"
    else:
        tables, row = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'", "*"
    return {table: sorted(instance.query(f"SELECT {row} FROM {table} r"), key=repr) for (table,) in instance.query(tables)}


def common_rows(*instances: Instance) -> bool:
    """Whether the shared rows are equal, in the tables that are in all of these databases: JSON is in none of SQLite's."""
    rows = [instance.rows() for instance in instances]
    tables = set.intersection(*map(set, rows))
    return all(one[table] == rows[0][table] for one in rows for table in tables)


def settle(instances: Sequence[Instance]) -> None:
    """Work and fetch until nobody has news."""
    for _ in range(20):
        done = sum(instance.work() for instance in instances)
        for one in instances:
            for other in instances:
                if one is not other:
                    one.fetch(other)
        done += sum(instance.work() for instance in instances)
        if done == 0:
            return
    raise AssertionError("the instances do not settle")
