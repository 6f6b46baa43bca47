"""A bridge killed at each crash point, on both back-ends: the watermark equals the effects, nothing is lost, nothing is done twice.

Each case has two copies of one database. At one of them, the twin, a job is done undisturbed, and everything that its database holds
is kept after each transaction. At the other a process does the same job and is killed at a place. What it leaves must equal one of
those states, in all of Rucio's tables and all of nsync's, and its own log must be the same, byte for byte; then the job is done
again, and the two must be equal. `CRASH_POINTS` says which places stand for which crash point.

tests/integration/test_kill.py kills whole nodes; lost replies and servers that stop are in test_postgres_faults.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from sqlalchemy import inspect, text

from nsync.log import segment
from nsync.log.stored import Head
from nsync.rucio_bridge import audit, charters, effects, triggers
from nsync.store import migrations
from nsync.store.database import writing
from tests.bridge.test_restored import amended
from tests.support.federation import AUTHOR, charter_document
from tests.support.instances import cycle, settle
from tests.support.notary import tell
from tests.support.victims import (
    FLOOR_INTERVAL_MS,
    NOW_MS,
    Ground,
    Job,
    Lab,
    Observed,
    Place,
    difference,
    everything,
    failpoint,
    observed,
    run,
    run_and_kill,
    statement,
)

RECEIVE = ("receive-verified", "intake-headers-written", "intake-ops-written", "log-segment-stored", "receive-before-commit")
STATE = ("log-slots-joined", "log-head-advanced", "log-catalogue-shown", "apply-state-moved")
ROWS = ("rows-detached", "rows-dids", "rows-contents", "rows-replicas", "rows-closed", "rows-open-data", "rows-removed")
PUBLISH = ("publish-signed", "log-head-advanced", "log-catalogue-shown", "publish-logged", "rows-removed", "work-before-commit")

CRASH_POINTS: dict[str, tuple[str, ...]] = {
    "C1 received, not durable": RECEIVE,
    "C2 durable, not acknowledged": ("receive-after-commit",),
    "C3 acknowledged, not merged": ("work-locked",),
    "C4 merged, rows not begun": STATE,
    "C5 the transaction has begun": ("work-locked",),
    "C6 amid the rows": ROWS,
    "C7 all rows written": ("apply-rows-written",),
    "C8 everything done, before COMMIT": ("work-before-commit",),
    "C9 COMMIT sent, its reply lost": (),  # test_postgres_faults.py: a proxy cuts the connection
    "C10 committed, the caller not told": ("work-after-commit",),
    "C11 captured, not published": ("work-locked", "publish-drained"),
    "C12 signed, not stored": PUBLISH,
    "C13 compaction and floors": (),  # test_killed_amid_a_floor, test_killed_amid_compaction: statement by statement
    "C14 another charter, another incarnation": (),  # test_killed_amid_an_adoption
    "C15 the schema is migrated": (),  # test_killed_amid_an_installation
    "C16 upload": (),  # not applicable: nsync moves no files
}
"""Log, slots, heads and Rucio's rows are in one database and move in one transaction. So C4 to C8 are places in that transaction, and
there is no cursor beside it that could be stale (C10)."""

SEGMENT_OPS_MAX = 4
"""Instead of 4096, so that a changeset of several segments is cheap."""
SPREAD = 3
"""Statements at which a job without failpoints is killed, from its first to its last."""


def test_each_crash_point_has_its_place() -> None:
    elsewhere = {"C9", "C13", "C14", "C15", "C16"}
    assert [name.split()[0] for name in CRASH_POINTS] == [f"C{number}" for number in range(1, 17)]
    assert {name.split()[0] for name, places in CRASH_POINTS.items() if not places} == elsewhere


# ---- jobs, which a process that is killed does at a database


def receive_and_work(lab: Lab, frames: Sequence[bytes]) -> None:
    assert lab.bridge.receive(frames, "atlas").rejected == ()
    lab.work()


def work(lab: Lab) -> None:
    lab.work()


def retry(lab: Lab) -> None:
    lab.bridge.retry_parked(lab.now_ms)


def look_at_all(lab: Lab) -> None:
    """In parts, so that there are several transactions."""
    lab.bridge._bulk = 8
    lab.work()


def rebuild(lab: Lab) -> None:
    lab.bridge.rebuild(lab.now_ms)


def adopt(lab: Lab, document: str) -> None:
    lab.bridge.adopt(document, lab.now_ms)


def tend(lab: Lab) -> None:
    while lab.notary.tend().fresh:
        pass


def compact(lab: Lab) -> None:
    while not lab.bridge.is_compact():
        lab.bridge.compact(0)


def install(lab: Lab) -> None:
    """As `nsync bridge install` does."""
    migrations.upgrade(lab.engine)
    triggers.install_beside(lab.engine)
    with writing(lab.engine) as connection:
        if charters.text_in_force(connection) is None:
            charters.keep(connection, charter_document())


def alone(lab: Lab, job: Job, *arguments: Any) -> Any:
    """Each changeset is a transaction, however short."""
    return _holding(0, lab, job, *arguments)


def all_in_one(lab: Lab, job: Job, *arguments: Any) -> Any:
    """All changesets are one transaction, however long, so that it is known where it dies."""
    return _holding(math.inf, lab, job, *arguments)


def _holding(ms_max: float, lab: Lab, job: Job, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "HOLD_MS_MAX", ms_max)
        return job(lab, *arguments)


# ---- the oracle


class Pair:
    """A survivor and its twin."""

    def __init__(self, ground: Ground, source: Lab) -> None:
        self.survivor, self.twin = ground.lab(source.name, source), ground.lab(source.name, source)

    def both(self) -> tuple[Lab, Lab]:
        return self.survivor, self.twin

    def check(self, job: Job, names: Sequence[str], *arguments: Any) -> list[int]:
        """Kill a process that does `job` at each of these failpoints, the last time that it passes it; at the end do it undisturbed.

        Returns after how many of the twin's transactions each left the database."""
        twin: Observed = run(self.twin, alone, observed, job, *arguments)
        left = []
        for name in names:
            assert twin.passed[name], f"{name} was never passed"
            place = failpoint(name, 1 if name.startswith("work-") else twin.passed[name])
            run_and_kill(self.survivor, place, all_in_one, job, *arguments)
            left.append(after(twin, self.survivor, place))
        finish(self.survivor, self.twin, job, *arguments)
        return left


def after(twin: Observed, survivor: Lab, place: Place) -> int:
    """After how many transactions of `twin` the survivor is."""
    found = everything(survivor)
    assert found in twin.states, f"{place}: it is as after no transaction; from the last one: {difference(found, twin.states[-1])}"
    return twin.states.index(found)


def finish(survivor: Lab, twin: Lab, job: Job, *arguments: Any) -> None:
    """A process that nobody disturbs ends the job, and nothing tells the survivor from its twin any more."""
    run(survivor, job, *arguments)
    assert not (found := difference(everything(survivor), everything(twin))), found
    assert survivor.log() == twin.log(), "its own log says everything once, and nothing else"
    for lab in (survivor, twin):
        lab.engine.dispose()


def statement_by_statement(ground: Ground, source: Lab, job: Job, *arguments: Any) -> list[int]:
    """Kill a process that does `job` at some of its statements; then do it undisturbed, and begin at a new copy of `source`.

    A death that left nothing, and is not the last, is followed by the next one. Returns after how many transactions each left the copy.
    """
    twin = ground.lab(source.name, source)
    done: Observed = run(twin, alone, observed, job, *arguments)
    left: list[int] = []
    survivor = ground.lab(source.name, source)
    for place in (places := spread(done.statements)):
        run_and_kill(survivor, place, alone, job, *arguments)
        left.append(after(done, survivor, place))
        if left[-1] or place == places[-1]:
            finish(survivor, twin, job, *arguments)
            survivor = ground.lab(source.name, source) if place != places[-1] else survivor
    return left


def spread(count: int) -> list[Place]:
    """Some of the statements of a job that has `count`, the first and the last among them."""
    return [statement(1 + round(step * (count - 1) / (SPREAD - 1))) for step in range(SPREAD)]


# ---- a receiver


class Story:
    """What atlas publishes: of a scope, a public dataset, a container that changes, removals."""

    def __init__(self, ground: Ground) -> None:
        self.author = ground.lab("atlas")
        self.author.join(["atlas"])
        self.author.add_scope("atlas")
        self.frames: list[bytes] = []
        self._publish()
        self.tell(0)
        self.first = len(self.frames)

    def _publish(self) -> None:
        have = {self.author.bridge.me.author: self.author.bridge.locator(self.author.bridge.me.author)}
        self.author.now_ms += 1000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segment, "OPS_MAX", SEGMENT_OPS_MAX)
            assert self.author.work() == 1
        self.frames += [s.frame for s in self.author.bridge.segments_after(have, 1 << 30)]

    def tell(self, number: int) -> list[bytes]:
        """Three changesets; returns their frames."""
        before = len(self.frames)
        for _ in cycle(self.author, "atlas", number):
            self._publish()
        return self.frames[before:]


@pytest.fixture(scope="module")
def story(ground: Ground) -> Story:
    return Story(ground)


class Told(NamedTuple):
    """A pair that received everything up to here."""

    pair: Pair
    counts: list[int]


@pytest.fixture(scope="module")
def receivers(ground: Ground, story: Story) -> Told:
    cms = ground.lab("cms")
    cms.join([])
    receive_and_work(cms, story.frames)
    return Told(Pair(ground, cms), [0])


@pytest.mark.parametrize("point", [name for name in CRASH_POINTS if name.split()[0] in ("C1", "C2", "C3", "C4", "C6", "C7", "C8", "C10")])
def test_a_receiver_killed_at(point: str, story: Story, receivers: Told) -> None:
    """Of a receipt and three changesets, which may be one transaction or several."""
    receivers.counts[0] += 1
    frames = story.tell(receivers.counts[0])
    for lab in receivers.pair.both():
        lab.now_ms = story.author.now_ms
    left = receivers.pair.check(receive_and_work, CRASH_POINTS[point], frames)
    wanted = {"C1": {0}, "C10": {4}}.get(point.split()[0], {1})
    assert set(left) == wanted, "nothing is stored, or what was acknowledged, or, with all its effects, all of it"


FAULTS = (
    "DELETE FROM contents WHERE child_name = 'public0.f0'",
    "DELETE FROM replicas WHERE name = 'public0.f1'",
    "UPDATE dids SET is_open = (name = 'public0')",
    "DELETE FROM updated_dids",
    "UPDATE nsync_branch SET applied = applied - 1",
    "DELETE FROM nsync_segment WHERE first = 1",
    "DELETE FROM nsync_entry WHERE kind = 6",
    "INSERT INTO nsync_outbox (kind, a) VALUES ('scope', 'atlas')",
)


def test_the_check_sees_what_is_lost_or_done_twice(story: Story, ground: Ground) -> None:
    """Planted faults: what a bridge that is not atomic, or forgets, would leave behind."""
    source = ground.lab("cms")
    source.join([])
    source.now_ms = story.author.now_ms
    frames = story.frames[: story.first]
    survivor, twin = ground.lab("cms", source), ground.lab("cms", source)
    done: Observed = run(twin, alone, observed, receive_and_work, frames)
    run(survivor, receive_and_work, frames)
    last = failpoint("the end")
    assert after(done, survivor, last) == len(done.states) - 1
    for fault in FAULTS:
        with survivor.engine.connect() as connection, triggers.unheard(connection):
            assert connection.execute(text(fault)).rowcount
            connection.commit()
            with pytest.raises(AssertionError, match="as after no transaction"):
                after(done, survivor, last)


# ---- a publisher, and what else an instance does by itself


@pytest.fixture(scope="module")
def publishers(ground: Ground) -> Told:
    belle2 = ground.lab("belle2")
    belle2.join(["belle2"])
    belle2.add_scope("belle2")
    belle2.work()
    return Told(Pair(ground, belle2), [0])


@pytest.mark.parametrize("point", ["C11 captured, not published", "C12 signed, not stored", "C10 committed, the caller not told"])
def test_a_publisher_killed_at(point: str, publishers: Told) -> None:
    """What users write in several transactions waits whole, or is published whole; and never is anything else signed at its place."""
    publishers.counts[0] += 1
    for lab in publishers.pair.both():
        lab.now_ms += 1000
        for _ in cycle(lab, "belle2", publishers.counts[0]):
            pass
    waiting = publishers.pair.survivor.query("SELECT count(*) FROM nsync_outbox")
    assert waiting > [(0,)]
    left = publishers.pair.check(work, CRASH_POINTS[point])
    assert set(left) == {1 if point.startswith("C10") else 0}, "COMMIT decides"


def test_killed_amid_what_was_parked_and_fits_at_last(ground: Ground, story: Story) -> None:
    """A private scope of the same name is given away."""
    cms = ground.lab("cms")
    cms.join([])
    cms.add_scope("atlas")
    cms.now_ms = story.author.now_ms
    receive_and_work(cms, story.frames[: story.first])
    assert cms.parked() and not any(cms.rows()[table] for table in ("dids", "contents", "replicas"))
    with cms.engine.begin() as connection:
        connection.execute(text("DELETE FROM scopes WHERE scope = 'atlas'"))
    statement_by_statement(ground, cms, retry)


@pytest.fixture(scope="module")
def author(ground: Ground) -> Lab:
    """An instance that has published something."""
    belle2 = ground.lab("belle2")
    belle2.join(["belle2"])
    belle2.add_scope("belle2")
    for _ in cycle(belle2, "belle2", 1):
        belle2.now_ms += 1000
        belle2.work()
    return belle2


def test_killed_amid_an_audit(ground: Ground, author: Lab) -> None:
    source = ground.lab("belle2", author)
    source.now_ms = author.now_ms + audit.PAUSE_MS
    with source.engine.begin() as connection, triggers.unheard(connection):
        connection.execute(text("DELETE FROM contents WHERE name = 'changing1' AND child_name = 'public1.f0'"))
        connection.execute(text("UPDATE dids SET project = 'unseen' WHERE name LIKE 'public1%'"))
        audit.ask(connection, "a test")
    left = statement_by_statement(ground, source, look_at_all)
    assert len(set(left)) > 2, "between its parts too"


def test_killed_amid_a_rebuild(ground: Ground, author: Lab) -> None:
    source = ground.lab("belle2", author)
    source.now_ms = author.now_ms
    source.add_did("belle2", "new")
    with source.engine.begin() as connection, triggers.unheard(connection):
        connection.execute(text("DELETE FROM nsync_entry WHERE name = 'public1.f1'"))
    assert 0 in statement_by_statement(ground, source, rebuild)


def test_killed_amid_an_adoption(ground: Ground, author: Lab) -> None:
    """Of a charter in which another instance goes on as its next incarnation, after a log that is here in part."""
    source = ground.lab("belle2", author)
    cms = ground.lab("cms")
    cms.join(["cms"])
    cms.add_scope("cms")
    for name in ("d1", "d2"):
        cms.publish_dataset("cms", name)
        cms.work()
    receive_and_work(source, cms.frames())
    with cms.engine.connect() as connection:
        (final,) = [Head(*row) for row in connection.execute(text(FIRST_END), {"author": AUTHOR["cms"]})]
    assert 0 in statement_by_statement(ground, source, adopt, amended(final))


FIRST_END = (
    "SELECT b.author, s.last, s.hash FROM nsync_segment s JOIN nsync_branch b ON b.id = s.branch WHERE b.author = :author "
    "ORDER BY s.last LIMIT 1"
)


# ---- floors


@pytest.fixture(scope="module")
def voter(ground: Ground) -> Lab:
    """An instance whose vote is the last one that the next floor waits for; much of its log is superseded below it."""
    made = [ground.lab(name) for name in ("atlas", "cms", "belle2")]
    for lab in made:
        lab.join([lab.name])
        lab.add_scope(lab.name)
        for _ in cycle(lab, lab.name, 1):
            lab.now_ms += 1000
            lab.work()
    settle(made)
    atlas, cms, belle2 = made
    for lab in made:
        lab.now_ms = NOW_MS + 10_000_000
        lab.notary.tend()
    for one, other in ((atlas, cms), (atlas, belle2), (cms, belle2)):
        tell(one, other)
    for lab in made:
        lab.now_ms += 2 * FLOOR_INTERVAL_MS
    cms.notary.tend()
    tell(cms, belle2)
    assert belle2.notary.stand().decided == 0
    return belle2


def test_killed_amid_a_floor(ground: Ground, voter: Lab) -> None:
    statement_by_statement(ground, voter, tend)


def test_killed_amid_compaction(ground: Ground, voter: Lab) -> None:
    source = ground.lab("belle2", voter)
    source.now_ms = voter.now_ms
    tend(source)
    assert source.notary.stand().decided == 1 and not source.bridge.is_compact()
    left = statement_by_statement(ground, source, compact)
    assert len(set(left)) > 1, "between two stretches too"


# ---- the schema


def shape(lab: Lab) -> dict[str, Any]:
    """nsync's tables with their columns, and its triggers."""
    inspector = inspect(lab.engine)
    tables = [table for table in inspector.get_table_names() if table.startswith("nsync_")]
    with lab.engine.connect() as connection:
        made = dict(triggers.installed(connection))
    return {"tables": {table: [str(c["name"]) for c in inspector.get_columns(table)] for table in tables}, "triggers": made}


@pytest.fixture
def bare(ground: Ground) -> Lab:
    """A Rucio database without nsync, in which something is."""
    lab = ground.lab("belle2")
    triggers.remove_beside(lab.engine)
    migrations.drop(lab.engine)
    lab.add_scope("belle2")
    assert shape(lab) == {"tables": {}, "triggers": {}}
    return lab


def test_killed_amid_an_installation(ground: Ground, bare: Lab) -> None:
    """Rucio works with whatever was left, and nothing that it does meanwhile is lost."""
    twin = ground.lab("belle2", bare)
    count = run(twin, observed, install).statements
    whole = shape(twin)
    tables = {one.table for one in triggers_of(twin)}
    lab = ground.lab("belle2", bare)
    for number, place in enumerate(spread(count)):
        run_and_kill(lab, place, install)
        left = shape(lab)
        assert left["tables"] in ({}, whole["tables"]), "tables are made in one transaction"
        for table in tables:
            wanted = {one.name for one in triggers_of(lab) if one.table == table}
            assert not wanted & set(left["triggers"]) or wanted <= set(left["triggers"]), f"{place}: {table} is captured in part"
        if not left["tables"]:
            continue
        lab.publish_dataset("belle2", f"meanwhile{number}")
        run(lab, install)
        assert shape(lab) == whole
        lab.bridge.share(["belle2"])
        lab.work()
        names = {(f"meanwhile{number}",), *((f"meanwhile{number}.f{i}",) for i in range(3))}
        assert set(lab.query("SELECT name FROM nsync_entry WHERE kind = 2")) == names, "found by the look at everything"
        lab = ground.lab("belle2", bare)


def triggers_of(lab: Lab) -> list[Any]:
    with lab.engine.connect() as connection:
        return list(triggers.wanted(connection))
