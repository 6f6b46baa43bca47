"""Processes that are killed amid one transaction of the bridge, on either back-end, and what they leave.

A `Lab` is a Rucio database at a URL with its bridge. `run_and_kill` lets a process of its own open it, do a job, and die by SIGKILL
at a place: a failpoint of the source, the k-th statement that it sends to the database, or a COMMIT that it is about to send. The
process is forked from a server that has imported everything already, so a death costs no more than the job.
`everything` is what a database holds, without what differs between two runs of one story.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from sqlalchemy import Engine, event, inspect, make_url, text
from sqlalchemy.orm import sessionmaker

from nsync.auth.keys import verify
from nsync.failpoints import watched
from nsync.rucio_bridge.bridge import Bridge
from nsync.store import kept
from nsync.store.notary import Notary
from tests.support import instances, rucio_postgres
from tests.support.federation import AUTHORITY, CHARTER, KEYS, charter_document
from tests.support.instances import EXPRESSION, Instance
from tests.support.postgres import Server

NOW_MS = 1_700_000_000_000
LEASE_MS = 900_000
FLOOR_INTERVAL_MS = 1000
JOB_S_MAX = 120.0
PROCESS_END_S_MAX = 20.0
QUIET_S_MAX = 30.0

Dump = dict[str, list[tuple[Any, ...]]]


class Lab(Instance):
    """The instance `name` on the Rucio database at `url`, as a process that has just started finds it. Its time stands still."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            self.path = Path(str(parsed.database))
            self.engine = instances.engine_of(self.path)
        else:
            self.engine = rucio_postgres.engine_of(url)
        self.sessions = sessionmaker(bind=self.engine)
        self.now_ms = NOW_MS
        self.bridge = self._bridge()
        self.notary = Notary(
            self.bridge, KEYS[name].sign, verify, lambda: self.now_ms, lambda *_: None, LEASE_MS, FLOOR_INTERVAL_MS, lambda: 0.0
        )

    def _bridge(self) -> Bridge:
        me = CHARTER.by_name(self.name)
        assert me is not None
        return Bridge(self.engine, AUTHORITY, me, KEYS[self.name].sign, verify, EXPRESSION)

    def join(self, shared: Sequence[str]) -> None:
        """As a node does at its first start."""
        with self.engine.begin() as connection:
            kept.write(connection, "index", bytes(16))  # else it is drawn, and no two databases are equal
        self.bridge.adopt(charter_document(), self.now_ms)
        self.bridge.share(shared)

    def work(self) -> int:
        """Everything there is to do, at one moment."""
        done = 0
        while not (worked := self.bridge.work(self.now_ms)).idle:
            done += len(worked.applied)
        return done

    def log(self) -> list[bytes]:
        """Its own log, as it hands it out."""
        return [segment.frame for segment in self.bridge.segments_after({self.bridge.me.author: []}, 1 << 30)]

    def quiet(self) -> None:
        """Wait until nobody else does anything: a server of PostgreSQL may go on with the last statement of a client that is dead."""
        if self.engine.dialect.name != "postgresql":
            return
        busy = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
        until = time.monotonic() + QUIET_S_MAX
        with self.engine.connect() as connection:
            while connection.execute(text(busy)).first() is not None:
                assert time.monotonic() < until, "somebody else is still at it"
                connection.rollback()
                time.sleep(0.005)


class Ground:
    """Where databases are: files of SQLite, or one server of PostgreSQL."""

    def __init__(self, template: str, directory: Path, server: Optional[Server] = None) -> None:
        """`template`: the URL of a Rucio database with nsync's part."""
        self._template, self._directory, self._server = template, directory, server
        self._stack = ExitStack()
        self._count = 0

    def lab(self, name: str, source: Optional[Lab] = None) -> Lab:
        """A new instance, or the copy of another; of which nobody may hold the database open."""
        url = self._template if source is None else source.url
        if source is not None:
            source.engine.dispose()
        self._count += 1
        if self._server is None:
            path = self._directory / f"{self._count}-{name}.db"
            shutil.copyfile(str(make_url(url).database), path)
            copied = f"sqlite+nsync:///{path}"
        else:
            copied = self._stack.enter_context(self._server.database(template=str(make_url(url).database)))
        made = Lab(copied, name)
        made.now_ms = NOW_MS if source is None else source.now_ms
        self._stack.callback(made.engine.dispose)
        return made

    def close(self) -> None:
        self._stack.close()


# ---- places


class Place(NamedTuple):
    """Where a process is killed: at a failpoint, before a statement, or before a COMMIT, the `times`-th that it comes to."""

    kind: str
    name: str = ""
    times: int = 1

    def __str__(self) -> str:
        return f"{self.name or self.kind}:{self.times}"


def failpoint(name: str, times: int = 1) -> Place:
    return Place("failpoint", name, times)


def statement(times: int) -> Place:
    return Place("statement", times=times)


def commit(times: int = 1) -> Place:
    return Place("commit", times=times)


@contextmanager
def at(engine: Engine, place: Place, reached: Callable[[], object]) -> Iterator[None]:
    """Within, `reached` is called at `place`."""
    left = [place.times]

    def passed(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            reached()

    if place.kind == "failpoint":
        with watched(lambda name: passed() if name == place.name else None):
            yield
    else:
        with _listening(engine, {"statement": "before_cursor_execute", "commit": "commit"}[place.kind], passed):
            yield


@contextmanager
def _listening(engine: Engine, name: str, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(engine, name, listener)
    try:
        yield
    finally:
        event.remove(engine, name, listener)


# ---- processes

Job = Callable[..., Any]
"""A function of a module, of a Lab and what it needs."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "tests.conftest", "tests.support.victims"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(lab: Lab, job: Job, *arguments: Any) -> Any:
    """Let a new process do the job at the database of `lab`, which nobody holds open meanwhile; returns what it returns."""
    code, (result, failure) = _process(lab, None, job, arguments)
    assert code == 0, failure
    return result


def run_and_kill(lab: Lab, place: Place, job: Job, *arguments: Any) -> None:
    """The same, and see that the process dies at `place`."""
    code, (_, failure) = _process(lab, place, job, arguments)
    assert code == -signal.SIGKILL, f"it was to be killed at {place}, and ended with {code}: {failure}"
    lab.quiet()


@contextmanager
def started(lab: Lab, job: Job, *arguments: Any) -> Iterator[Any]:
    """A process that does a job without end, and is dead after the block."""
    ours, process = _spawn(lab, None, job, arguments)
    try:
        yield process
        assert not ours.poll(0), f"it ended by itself: {ours.recv()}"
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    lab.quiet()


def _spawn(lab: Lab, place: Optional[Place], job: Job, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    lab.engine.dispose()
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_do, args=(theirs, lab.url, lab.name, lab.now_ms, place, job, arguments))
    process.start()
    theirs.close()
    return ours, process


def _process(lab: Lab, place: Optional[Place], job: Job, arguments: tuple[Any, ...]) -> tuple[Optional[int], tuple[Any, str]]:
    ours, process = _spawn(lab, place, job, arguments)
    try:
        said = ours.recv() if ours.poll(JOB_S_MAX) else (None, "it takes too long")
    except EOFError:  # it is dead
        said = (None, "it said nothing")
    ours.close()
    process.join(PROCESS_END_S_MAX)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return code, said


def _do(tell: Any, url: str, name: str, now_ms: int, place: Optional[Place], job: Job, arguments: tuple[Any, ...]) -> None:
    lab = Lab(url, name)
    lab.now_ms = now_ms
    try:
        with nullcontext() if place is None else at(lab.engine, place, die):
            result = job(lab, *arguments)
    except BaseException:
        tell.send((None, traceback.format_exc()))
        raise
    lab.engine.dispose()
    tell.send((result, ""))


class Observed(NamedTuple):
    """What an undisturbed process did."""

    states: list[Dump]
    """`everything` before, and after each transaction of the bridge that wrote."""
    passed: Counter[str]
    """How often it passed each failpoint."""
    statements: int


def observed(lab: Lab, job: Job, *arguments: Any) -> Observed:
    """Do a job, and look at everything meanwhile: a job itself."""
    found = Observed([everything(lab)], Counter(), 0)
    counting, statements = [True], [0]

    def look() -> None:
        counting[0] = False
        found.states.append(everything(lab))
        counting[0] = True

    def count(*_: Any) -> None:
        statements[0] += counting[0]

    with watched(lambda name: found.passed.update([name])), _listening(lab.engine, "before_cursor_execute", count):
        for name in ("_beside_rucio", "_writing"):
            setattr(lab.bridge, name, _told(getattr(lab.bridge, name), look))
        try:
            job(lab, *arguments)
        finally:
            del lab.bridge._beside_rucio, lab.bridge._writing
    return found._replace(statements=statements[0])


def _told(transaction: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    """`transaction`, followed by `then`."""

    @contextmanager
    def told(**options: Any) -> Iterator[Any]:
        with transaction(**options) as session:
            yield session
        then()

    return told


# ---- what a database holds

_SURROGATES = {"id", "arrival"}
_MEASURED = {"nsync_peer"}
_GUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def everything(lab: Lab) -> Dump:
    """All rows of all tables that have any, without Rucio's times and surrogate keys; RSEs, which others refer to, stand by name."""
    found: Dump = {}
    with lab.engine.connect() as connection:
        rses = {_plain(row[0]): f"RSE {row[1]}" for row in connection.execute(text("SELECT id, rse FROM rses"))}
        for table, columns in _tables(lab.engine).items():
            rows = [tuple(map(_plain, row)) for row in connection.execute(text(f"SELECT {', '.join(columns)} FROM {table}"))]
            if rows:
                found[table] = sorted((tuple(rses.get(value, value) for value in row) for row in rows), key=repr)
    return found


_COLUMNS: dict[str, dict[str, list[str]]] = {}


def _tables(engine: Engine) -> dict[str, list[str]]:
    known = _COLUMNS.get(engine.dialect.name)
    if known is None:
        known = {}
        for (_, table), columns in sorted(inspect(engine).get_multi_columns().items(), key=lambda item: item[0][1]):
            if table not in _MEASURED:
                names = [column["name"] for column in columns]
                known[table] = [f'"{name}"' for name in names if name not in _SURROGATES and not name.endswith("_at")] or ["1"]
        _COLUMNS[engine.dialect.name] = known
    return known


def _plain(value: Any) -> Any:
    """The same on both back-ends, in whatever form a driver gives it."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if hasattr(value, "hex") and not isinstance(value, (bytes, float)):
        return str(value.hex)  # a UUID
    return value


def difference(one: Dump, other: Dump) -> dict[str, Any]:
    """What tells two of them apart, for the text of a failure."""
    found = {}
    for table in sorted(set(one) | set(other)):
        left, right = one.get(table, []), other.get(table, [])
        if left != right:
            found[table] = ([row for row in left if row not in right], [row for row in right if row not in left], len(left), len(right))
    return found
