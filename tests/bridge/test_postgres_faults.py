"""PostgreSQL stops, answers no more, makes wait, has no room: the bridge rolls back, signs nothing twice at one place, and goes on.

As in test_crash_points.py a job is done twice: undisturbed at a twin, whose states are kept, and disturbed at its survivor, which
must be as after a whole number of the twin's transactions, and equal to it at the end.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Callable

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from nsync import failpoints
from nsync.rucio_bridge import effects
from nsync.store import database
from nsync.store.database import lock_key
from tests.bridge.test_crash_points import after, receive_and_work
from tests.support import postgres
from tests.support.instances import cycle
from tests.support.pg_proxy import PgProxy, at_commit, at_message
from tests.support.postgres import Server
from tests.support.rucio_postgres import build
from tests.support.victims import NOW_MS, Ground, Job, Lab, at, difference, everything, failpoint, observed

pytestmark = pytest.mark.postgres

SEED = 20_260_101
RANDOM_CUTS = 3
RANDOM_STOPS = 4
WAIT_S = 0.3
STOPS = ("work-locked", "publish-logged", "log-head-advanced", "rows-dids", "work-before-commit", "work-after-commit")
END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :database"
TRIES_MAX = 3
RANDOM_S_MAX = 0.4


class Both:
    """A survivor and its twin at one server, at which the same users write; each has received the same from atlas."""

    def __init__(self, ground: Ground, author: Lab) -> None:
        self.author = author
        source = ground.lab("belle2")
        source.join(["belle2"])
        source.add_scope("belle2")
        source.work()
        self.survivor, self.twin = ground.lab("belle2", source), ground.lab("belle2", source)
        self.count = 0
        self.equal = False
        """Whether the last test found them so."""

    def users_write(self) -> list[bytes]:
        """Here and at atlas; returns what atlas published."""
        self.count += 1
        for lab in (self.survivor, self.twin, self.author):
            lab.now_ms += 1000
            for _ in cycle(lab, lab.name, self.count):
                pass
        frames = self.author.bridge
        have = {frames.me.author: frames.locator(frames.me.author)}
        self.author.work()
        return [segment.frame for segment in frames.segments_after(have, 1 << 30)]


def receive_and_publish(lab: Lab, frames: Sequence[bytes]) -> None:
    """What users did here and what atlas published, in one transaction after the receipt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "HOLD_MS_MAX", math.inf)
        receive_and_work(lab, frames)


@pytest.fixture(scope="module")
def at_server(postgres_server: Server, rucio_on_postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(postgres_server.url(rucio_on_postgres), tmp_path_factory.mktemp("faults"), postgres_server)
    yield made
    made.close()


@pytest.fixture(scope="module")
def kept() -> list[Both]:
    """What the test before left, if it went well."""
    return []


@pytest.fixture
def both(at_server: Ground, kept: list[Both]) -> Iterator[Both]:
    found = kept.pop() if kept else Both(at_server, new_author(at_server))
    found.equal = False
    yield found
    if found.equal:
        kept.append(found)


def new_author(ground: Ground) -> Lab:
    author = ground.lab("atlas")
    author.join(["atlas"])
    author.add_scope("atlas")
    return author


def again(lab: Lab, job: Job, *arguments: Any) -> int:
    """Do the job with the same bridge as a node does, which tries again what was rolled back; returns how often it was."""
    for failed in range(TRIES_MAX):
        try:
            job(lab, *arguments)
            return failed
        except DBAPIError:
            pass
    raise AssertionError(f"it failed {TRIES_MAX} times after all was well again")


def equal(both: Both) -> None:
    assert not (found := difference(everything(both.survivor), everything(both.twin))), found
    assert both.survivor.log() == both.twin.log(), "its own log says everything once, and nothing else"
    both.equal = True


# ---- connections that are cut


@pytest.fixture(scope="module")
def proxy(postgres_server: Server) -> Iterator[PgProxy]:
    made = PgProxy(f"{postgres_server.plan.directory}/.s.PGSQL.5432")
    yield made
    made.close()


@pytest.fixture
def through(proxy: PgProxy, both: Both) -> Iterator[Lab]:
    """The survivor, by way of the proxy."""
    lab = Lab(proxy.url(str(make_url(both.survivor.url).database)), both.survivor.name)
    yield lab
    lab.engine.dispose()


@pytest.mark.parametrize("commit", [1, 2], ids=["of-a-receipt", "of-work"])
@pytest.mark.parametrize("forwarded", [True, False], ids=["reply-lost", "never-sent"])
def test_a_cut_at_commit(commit: int, forwarded: bool, both: Both, proxy: PgProxy, through: Lab) -> None:
    """C9: nobody can tell whether it took effect. Nothing is signed twice at one place, nothing is applied twice."""
    frames = both.users_write()
    through.now_ms = both.survivor.now_ms
    done = observed(both.twin, receive_and_publish, frames)
    assert len(done.states) == 3, "before, after the receipt, after the work"
    with proxy.cutting(at_commit(forwarded, commit)), pytest.raises(OperationalError):
        receive_and_publish(through, frames)
    both.survivor.quiet()
    assert after(done, both.survivor, failpoint("COMMIT")) == (commit if forwarded else commit - 1)
    assert again(through, receive_and_publish, frames) == 0
    equal(both)


def test_cuts_at_random_messages(both: Both, proxy: PgProxy, through: Lab) -> None:
    rng, kept = random.Random(SEED), set()
    frames = both.users_write()
    through.now_ms = both.survivor.now_ms
    observed(both.twin, receive_and_publish, frames)
    with proxy.cutting(None):
        receive_and_publish(through, frames)
    count = proxy.messages
    for _ in range(RANDOM_CUTS):
        frames = both.users_write()
        through.now_ms = both.survivor.now_ms
        done = observed(both.twin, receive_and_publish, frames)
        cut = at_message(rng.randint(1, count), rng.random() < 0.5)
        with proxy.cutting(cut), suppress(DBAPIError):
            receive_and_publish(through, frames)
        both.survivor.quiet()
        kept.add(after(done, both.survivor, failpoint("cut")))
        assert again(through, receive_and_publish, frames) <= 1
        equal(both)
    assert len(kept) > 1, "some before the receipt was kept, and some after it"
    assert proxy.cuts >= RANDOM_CUTS // 2


def test_idle_connections_that_the_server_ended(both: Both) -> None:
    """At worst one attempt fails, and no connection of the pool is tried after it."""
    frames = both.users_write()
    observed(both.twin, receive_and_publish, frames)
    lab = both.survivor
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(lab.engine.connect())
    end_others(both.twin, lab)
    assert again(lab, receive_and_publish, frames) <= 1
    equal(both)


def end_others(by: Lab, of: Lab) -> None:
    with by.engine.connect() as connection:
        connection.execute(text(END_CONNECTIONS), {"database": make_url(of.url).database})


# ---- a server that stops


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module's own."""
    with postgres.serve() as server:
        yield server


@pytest.fixture(scope="module")
def beside_it(stopping: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with stopping.database() as url:
        build(url, tmp_path_factory.mktemp("stopping"))
        ground = Ground(url, tmp_path_factory.mktemp("stops"), stopping)
        made = Both(ground, new_author(ground))
        stopping.execute("CHECKPOINT")  # before one, a stop can take the sequences of a copied database back to the template's
        yield made
        ground.close()


@pytest.mark.parametrize("name", STOPS)
def test_an_immediate_stop_at(name: str, stopping: Server, beside_it: Both) -> None:
    frames = beside_it.users_write()
    lab = beside_it.survivor
    done = observed(beside_it.twin, receive_and_publish, frames)
    with at(lab.engine, failpoint(name), stopping.crash), pytest.raises(OperationalError):
        receive_and_publish(lab, frames)
    drop_connections(beside_it)
    assert after(done, lab, failpoint(name)) == (2 if name == "work-after-commit" else 1)
    assert again(lab, receive_and_publish, frames) == 0
    equal(beside_it)


def test_immediate_stops_at_random_moments(stopping: Server, beside_it: Both) -> None:
    rng, lab = random.Random(SEED), beside_it.survivor
    for number in range(RANDOM_STOPS):
        frames = beside_it.users_write()
        done = observed(beside_it.twin, receive_and_publish, frames)
        delay_s = rng.uniform(0, RANDOM_S_MAX)
        timer = threading.Timer(delay_s, stopping.crash)
        timer.start()
        try:
            receive_and_publish(lab, frames)
            ended = "done"
        except DBAPIError as error:
            ended = type(error.orig).__name__
        timer.join()
        drop_connections(beside_it)
        print(f"seed {SEED}, stop {number} after {delay_s:.3f} s: {ended}, after {after(done, lab, failpoint('stop'))} transactions")
        assert again(lab, receive_and_publish, frames) == 0
        equal(beside_it)


def drop_connections(both: Both) -> None:
    """Those that the stop has ended: of users here, whose pools would each fail once."""
    for lab in (both.survivor, both.twin, both.author):
        lab.engine.dispose()


# ---- locks


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WRITE_LOCK_WAIT_S_MAX", WAIT_S)


def test_somebody_writes_for_longer_than_it_waits(both: Both, short: None) -> None:
    frames = both.users_write()
    done = observed(both.twin, receive_and_publish, frames)
    with both.survivor.engine.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key(other)})
        other.commit()
        bridge = both.survivor.bridge
        for job in (lambda: bridge.receive(frames, "atlas"), lambda: bridge.work(NOW_MS), lambda: bridge.rebuild(NOW_MS)):
            with pytest.raises(OperationalError, match="lock timeout"):
                job()
        other.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock_key(other)})
    assert after(done, both.survivor, failpoint("waits")) == 0
    assert again(both.survivor, receive_and_publish, frames) == 0
    equal(both)


def test_a_transaction_of_rucio_holds_a_row_for_longer_than_it_waits(both: Both, short: None) -> None:
    frames = both.users_write()
    done = observed(both.twin, receive_and_publish, frames)
    with both.survivor.engine.connect() as rucio:
        rucio.execute(text("SELECT name FROM dids WHERE scope = 'belle2' FOR UPDATE"))
        rucio.execute(text("SELECT rse FROM rses FOR UPDATE"))
        rucio.execute(text("LOCK TABLE contents IN SHARE ROW EXCLUSIVE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            receive_and_publish(both.survivor, frames)
    assert after(done, both.survivor, failpoint("waits")) == 1, "what was received is kept, nothing of the work is"
    assert again(both.survivor, receive_and_publish, frames) == 0
    equal(both)


# ---- conflicts

TOUCH = "UPDATE dids SET updated_at = now() WHERE scope = 'atlas' AND name = :name"
"""A change that says nothing to the namespace."""


@pytest.fixture
def changing(both: Both) -> list[bytes]:
    """A changeset of atlas that closes a dataset, which is here, and takes a file out of it."""
    atlas = both.author
    receive_and_work_all(both, both.users_write())
    have = {atlas.bridge.me.author: atlas.bridge.locator(atlas.bridge.me.author)}
    atlas.add_did("atlas", name := f"torn{both.count}")
    atlas.add_files("atlas", [f"{name}.f"])
    atlas.attach("atlas", name, [("atlas", f"{name}.f")])
    atlas.work()
    receive_and_work_all(both, frames_after(atlas, have))
    have = {atlas.bridge.me.author: atlas.bridge.locator(atlas.bridge.me.author)}
    atlas.detach("atlas", name, [("atlas", f"{name}.f")])
    atlas.set_open("atlas", name, False)
    atlas.work()
    return frames_after(atlas, have)


def receive_and_work_all(both: Both, frames: Sequence[bytes]) -> None:
    for lab in (both.survivor, both.twin):
        receive_and_publish(lab, frames)


def frames_after(lab: Lab, have: Any) -> list[bytes]:
    return [segment.frame for segment in lab.bridge.segments_after(have, 1 << 30)]


def test_rows_that_change_between_snapshot_and_write(both: Both, changing: list[bytes]) -> None:
    """Twice; the third time it is written."""
    done, left = observed(both.twin, receive_and_publish, changing), [2]
    with both.survivor.engine.connect() as rucio:

        def touch() -> None:
            if left[0]:
                left[0] -= 1
                rucio.execute(text(TOUCH), {"name": f"torn{both.count}"})
                rucio.commit()

        with each_time("apply-state-moved", touch) as passed:
            receive_and_publish(both.survivor, changing)
    assert len(passed) == 3
    assert after(done, both.survivor, failpoint("touched")) == len(done.states) - 1
    equal(both)


def test_rows_that_always_change(both: Both, changing: list[bytes]) -> None:
    """It gives up, tells why and what to do, and nothing is torn."""
    done = observed(both.twin, receive_and_publish, changing)
    with both.survivor.engine.connect() as rucio:

        def touch() -> None:
            rucio.execute(text(TOUCH), {"name": f"torn{both.count}"})
            rucio.commit()

        told = pytest.raises(OperationalError, match=r"(?s)9 times.*tried again later.*pg_stat_activity")
        with each_time("apply-state-moved", touch) as passed, told:
            receive_and_publish(both.survivor, changing)
    assert len(passed) == database.CONFLICTS_MAX + 1
    assert after(done, both.survivor, failpoint("touched")) == 1
    assert again(both.survivor, receive_and_publish, changing) == 0
    equal(both)


def test_a_deadlock_with_a_transaction_of_rucio(both: Both, changing: list[bytes]) -> None:
    """It has the dataset and wants the attachment, which the bridge has taken out and wants the dataset."""
    done = observed(both.twin, receive_and_publish, changing)
    name, failures = f"torn{both.count}", []
    with both.survivor.engine.connect() as rucio:
        thread = threading.Thread(target=lambda: _touch_attachment(rucio, name, failures))

        def begin() -> None:
            if thread.ident is None:
                rucio.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # so that it is the bridge that finds out, and gives way
                rucio.execute(text(TOUCH), {"name": name})

        def cross() -> None:
            if thread.ident is None:
                thread.start()

        with each_time("apply-state-moved", begin) as passed, each_time("rows-detached", cross):
            receive_and_publish(both.survivor, changing)
        thread.join()
    assert failures == [] and len(passed) > 1, "it was begun anew"
    assert after(done, both.survivor, failpoint("deadlock")) == len(done.states) - 1
    equal(both)


def _touch_attachment(rucio: Any, name: str, failures: list[BaseException]) -> None:
    try:
        rucio.execute(text("UPDATE contents SET updated_at = now() WHERE scope = 'atlas' AND name = :name"), {"name": name})
        rucio.commit()
    except BaseException as error:
        failures.append(error)


@contextmanager
def each_time(name: str, then: Callable[[], None]) -> Iterator[list[str]]:
    """Call `then` each time that failpoint `name` is passed."""
    passed: list[str] = []
    outer = failpoints._watch

    def look(found: str) -> None:
        if outer is not None:
            outer(found)
        if found == name:
            passed.append(found)
            then()

    with failpoints.watched(look):
        yield passed
