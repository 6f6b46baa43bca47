"""Capture and wake-up beside Rucio on PostgreSQL: each change is captured once and told, and the bridge's own are not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rucio.db.sqla.constants import OpenDataDIDState
from sqlalchemy import text

from nsync.namespace.keys import Did
from nsync.rucio_bridge import audit, triggers
from nsync.rucio_bridge.capture import Capture
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.rehearsal import rehearse
from nsync.rucio_bridge.watch import LOOK_S
from nsync.store.database import writing
from nsync.transport.times import happens
from tests.bridge.test_accepted import accept
from tests.bridge.test_scope_map import tell_the_story
from tests.bridge.test_watch import LONG_S, SOON_S, aside, watched
from tests.support.instances import Instance, settle
from tests.support.postgres import Server
from tests.support.rucio_postgres import PostgresInstance
from tests.support.victims import at, failpoint

pytestmark = pytest.mark.postgres

END_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def atlas(postgres_server: Server, rucio_on_postgres: str) -> Iterator[PostgresInstance]:
    with postgres_server.database(template=rucio_on_postgres) as url:
        made = PostgresInstance(url, "atlas", ["atlas"])
        made.add_scope("atlas")
        made.work()
        yield made
        made.close()


@pytest.fixture
def cms(template_database: Path, tmp_path: Path) -> Iterator[Instance]:
    made = Instance(template_database, tmp_path, "cms", ["cms"], durable=False)
    made.add_scope("cms")
    yield made
    made.close()


def outbox(instance: Instance) -> list[tuple[object, ...]]:
    return sorted(set(instance.query("SELECT kind, a, b, c, d FROM nsync_outbox")), key=repr)


# ---- capture


def test_what_users_do_is_captured_and_published(atlas: PostgresInstance) -> None:
    atlas.publish_dataset("atlas", "d1", doi="10.5072/D1")
    captured = {(kind, a, b) for kind, a, b, *_ in outbox(atlas)}
    assert captured >= {("did", "atlas", "d1"), ("did", "atlas", "d1.f0"), ("replica", "atlas", "d1.f0"), ("attachment", "atlas", "d1")}
    assert atlas.work() == 1 and outbox(atlas) == []
    rows = atlas.rows()
    assert {row[1] for row in rows["dids"]} == {"d1", "d1.f0", "d1.f1", "d1.f2"} and len(rows["replicas"]) == 3
    atlas.set_open_data("atlas", "d1", state=OpenDataDIDState.SUSPENDED)
    assert outbox(atlas) == [("did", "atlas", "d1", None, None)]
    assert atlas.work() == 1 and atlas.work() == 0


def test_an_update_that_says_nothing_and_what_is_not_shared_are_not_captured(atlas: PostgresInstance) -> None:
    atlas.add_did("atlas", "d1")
    atlas.add_scope("private")
    atlas.add_did("private", "d1")
    assert atlas.work() == 1
    with atlas.engine.begin() as connection:
        assert connection.execute(text("UPDATE dids SET updated_at = now()")).rowcount == 2
    assert outbox(atlas) == []


def test_what_changed_while_data_became_public_is_published_too(atlas: PostgresInstance) -> None:
    """In a scope that is not watched triggers know of a DID only once it is shown."""
    atlas.add_scope("atlas.open")
    atlas.publish_dataset("atlas.open", "d1")
    with atlas.engine.begin() as slow:
        slow.execute(text("UPDATE dids SET project = 'late' WHERE name = 'd1.f0'"))
        assert atlas.work() == 1
        with atlas.engine.begin() as quick:
            quick.execute(text("UPDATE dids SET project = 'shown' WHERE name = 'd1.f1'"))
        assert atlas.work() == 1 and ("project", "late") not in atlas.catalogue()[Did("atlas.open", "d1.f0")].meta  # type: ignore[union-attr]
    assert atlas.work() == 1 and atlas.work() == 0
    found = atlas.catalogue()
    assert [found[Did("atlas.open", f"d1.f{n}")].meta for n in (0, 1, 2)] == [  # type: ignore[union-attr]
        (("project", "late"),),
        (("project", "shown"),),
        (),
    ]
    assert atlas.query("SELECT reason FROM nsync_audit") == []


def test_nothing_is_written_over_what_an_audit_waits_to_see(atlas: PostgresInstance, cms: Instance) -> None:
    cms.add_did("cms", "d1")
    cms.work()
    atlas.fetch(cms)
    with writing(atlas.engine) as connection:
        audit.ask(connection, "asked for by a test")
    with atlas.engine.begin() as slow:
        slow.execute(text("UPDATE accounts SET email = 'x' WHERE account = 'root'"))
        atlas.work()
        assert atlas.query("SELECT 1 FROM dids WHERE scope = 'cms'") == []
        assert not rehearse(atlas.bridge, ["atlas"], {}, atlas.now_ms).is_all
        with atlas.engine.connect() as connection:
            (waits,) = audit.pending(connection)
        assert waits.startswith("asked for by a test: when transactions of this database before ")
    atlas.work()
    assert atlas.query("SELECT name FROM dids WHERE scope = 'cms'") == [("d1",)]


def test_names_may_be_wider_in_one_table_than_in_another(atlas: PostgresInstance, cms: Instance) -> None:
    """As a DBA left them; a recursive query wants one type."""
    with atlas.engine.begin() as connection:
        connection.execute(text("ALTER TABLE dids ALTER COLUMN name TYPE VARCHAR(500)"))
    cms.publish_dataset("cms", "d1")
    cms.work()
    atlas.fetch(cms)
    atlas.work()
    assert atlas.query("SELECT length, bytes FROM dids WHERE scope = 'cms' AND name = 'd1'") == [(3, 30)]


@pytest.mark.parametrize("adler32", ["00000001", "00000002"])
def test_a_row_that_is_committed_beside_a_changeset_is_looked_at(adler32: str, atlas: PostgresInstance, cms: Instance) -> None:
    """The transaction does not see it, and meets it all the same: only begun anew it can tell whether it is in the way."""
    cms.add_did("cms", "d0")
    cms.work()
    atlas.fetch(cms)
    atlas.work()
    cms.publish_dataset("cms", "d1")
    cms.work()
    atlas.fetch(cms)
    made: list[None] = []

    def meanwhile() -> None:
        if not made:
            made.append(atlas.add_files("cms", ["d1.f1"], adler32=adler32))

    with at(atlas.engine, failpoint("apply-state-moved"), meanwhile):
        atlas.work()
    if adler32 == "00000001":
        assert atlas.parked() == {} and atlas.query("SELECT count(*) FROM dids WHERE scope = 'cms'") == [(5,)]
    else:
        reasons = set(atlas.parked().values())
        assert any("00000002" in reason for reason in reasons) and not any("Rucio refused" in reason for reason in reasons)


def test_what_the_bridge_writes_is_no_change_and_what_rucio_commits_meanwhile_is(atlas: PostgresInstance) -> None:
    atlas.add_did("atlas", "d1")
    atlas.work()
    with writing(atlas.engine) as connection, triggers.unheard(connection):
        connection.execute(text("UPDATE dids SET bytes = 7 WHERE name = 'd1'"))
        atlas.add_did("atlas", "d2")  # by another connection
    assert outbox(atlas) == [("did", "atlas", "d2", None, None)]
    with writing(atlas.engine) as connection:
        with triggers.unheard(connection):
            pass
        connection.execute(text("UPDATE dids SET bytes = 8 WHERE name = 'd1'"))
    assert outbox(atlas) == [("did", "atlas", "d1", None, None), ("did", "atlas", "d2", None, None)]


def test_a_change_that_commits_amid_a_drain_is_not_lost(atlas: PostgresInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place in the outbox is before what is drained."""
    forget = Capture.forget

    def meanwhile(capture: Capture, until: int) -> None:
        late.commit()
        forget(capture, until)

    with atlas.engine.connect() as late:
        late.execute(text("INSERT INTO nsync_outbox (kind, a, b) VALUES ('did', 'atlas', 'late')"))
        atlas.add_did("atlas", "d1")
        monkeypatch.setattr(Capture, "forget", meanwhile)
        assert atlas.bridge.work(atlas.now_ms).published == 1
    assert outbox(atlas) == [("did", "atlas", "late", None, None)]


def test_a_transaction_that_commits_amid_a_drain_is_not_torn(atlas: PostgresInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its rows is about to be read for another reason: it is taken whole or not at all, and nothing of it is undone."""
    captured = Capture._captured

    def meanwhile(capture: Capture, until: int) -> object:
        found = captured(capture, until)
        late.commit()
        return found

    atlas.add_did("atlas", "d1")
    assert atlas.work() == 1
    atlas.add_did("atlas", "d2")
    with atlas.engine.connect() as late:
        late.execute(text("UPDATE dids SET is_open = false WHERE name IN ('d1', 'd2')"))
        monkeypatch.setattr(Capture, "_captured", meanwhile)
        published = [applied.changed for _ in range(2) for applied in atlas.bridge.work(atlas.now_ms).applied]
    assert published in ([2], [1, 2])
    assert outbox(atlas) == [] and set(atlas.query("SELECT name, is_open FROM dids")) == {("d1", False), ("d2", False)}


def test_what_rucio_changes_amid_an_application_is_not_overwritten(atlas: PostgresInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that was about to write the same row is begun anew, and then publishes the change first."""
    run, begun = Materialise.run, []

    def meanwhile(self: Materialise, *arguments: Any) -> bool:
        begun.append(1)
        if len(begun) == 1:
            late.execute(text("UPDATE dids SET is_open = false WHERE name = 'd1'"))
            late.commit()
        return run(self, *arguments)

    atlas.add_did("atlas", "d1")
    with atlas.engine.connect() as late:
        monkeypatch.setattr(Materialise, "run", meanwhile)
        assert atlas.bridge.work(atlas.now_ms).published
        atlas.work()
    assert set(atlas.query("SELECT name, is_open FROM dids")) == {("d1", False)} and outbox(atlas) == []


def test_triggers_are_removed_with_their_functions(atlas: PostgresInstance) -> None:
    with writing(atlas.engine) as connection:
        assert triggers.missing(connection) == []
        triggers.remove(connection)
        assert not triggers.installed(connection) and len(triggers.missing(connection)) == len(triggers.wanted(connection)) > 40
    assert atlas.query("SELECT proname FROM pg_proc WHERE starts_with(proname, :prefix)", prefix=triggers.PREFIX) == []
    atlas.add_did("atlas", "d1")
    assert outbox(atlas) == []


# ---- the watch


def test_a_commit_of_rucio_wakes_on_postgresql(atlas: PostgresInstance) -> None:
    asyncio.run(_wakes(atlas))


async def _wakes(atlas: PostgresInstance) -> None:
    async with watched(atlas.engine) as news:
        assert not await happens(news, LONG_S)
        for name in ("d1", "d2", "d3"):
            await aside(lambda: atlas.add_did("atlas", name))  # noqa: B023
            assert await happens(news, SOON_S), f"nobody was woken for {name}"
            await aside(atlas.work)
            await asyncio.sleep(2 * LOOK_S)
            news.clear()
        assert not await happens(news, LONG_S), "what is published wakes nobody"


def test_a_watch_whose_connection_was_ended_looks_again(atlas: PostgresInstance, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nsync.rucio_bridge.watch")
    asyncio.run(_killed(atlas))
    assert caplog.text.count("are found by the poll") == 1 and "wake the node again" in caplog.text


async def _killed(atlas: PostgresInstance) -> None:
    async with watched(atlas.engine) as news:
        assert not await happens(news, LONG_S)
        atlas.query(END_OTHERS)
        atlas.engine.dispose()
        await asyncio.sleep(LONG_S)
        await aside(lambda: atlas.add_did("atlas", "d1"))
        assert await happens(news, SOON_S)


def test_a_burst_wakes_some_five_times_a_second(atlas: PostgresInstance) -> None:
    asyncio.run(_burst(atlas))


async def _burst(atlas: PostgresInstance) -> None:
    async with watched(atlas.engine) as news:
        began, woken = time.monotonic(), 0
        ended = threading.Event()
        with ThreadPoolExecutor(1) as users:
            users.submit(_insert_many, atlas, ended)
            while not ended.is_set() or not woken:
                woken += await happens(news, LOOK_S)
                news.clear()
        assert 1 <= woken <= (time.monotonic() - began) / LOOK_S + 2


def _insert_many(atlas: PostgresInstance, ended: threading.Event) -> None:
    try:
        for i in range(100):
            with atlas.engine.begin() as connection:
                connection.execute(text("INSERT INTO nsync_outbox (kind, a) VALUES ('scope', :name)"), {"name": f"s{i}"})
    finally:
        ended.set()


# ---- a scope under another name


def test_a_mapped_scope_is_shown_and_the_private_one_of_its_name_is_left_alone(
    atlas: PostgresInstance, template_database: Path, tmp_path: Path
) -> None:
    cms = Instance(template_database, tmp_path, "cms", ["cms"])
    tell_the_story(atlas, cms)
    cms.close()


# ---- a changeset without what does not fit


def test_what_is_accepted_partially_is_written_but_for_what_does_not_fit(atlas: PostgresInstance, cms: Instance) -> None:
    settle([cms, atlas])
    atlas.add_files("cms", ["f1"], 7, "00000007")
    cms.add_files("cms", ["f1", "f2"])
    cms.add_did("cms", "d1")
    cms.attach("cms", "d1", [("cms", "f1"), ("cms", "f2")])
    settle([cms, atlas])
    ((batch,),) = atlas.query("SELECT DISTINCT batch FROM nsync_parked")
    accept(atlas, str(batch))
    assert atlas.query("SELECT child_name FROM contents WHERE scope = 'cms'") == [("f2",)]
    assert len(atlas.parked()) == 3 and not atlas.bridge.retry_parked(atlas.now_ms).released
    atlas.delete_replicas("cms", ["f1"])
    atlas.bridge.retry_parked(atlas.now_ms)
    assert atlas.parked() == {} and atlas.rows().items() >= cms.rows().items()
