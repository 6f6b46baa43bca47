"""The node as its operator meets it: it starts or says why not, exchanges, goes on beside what it does not know, and stops in order."""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Callable

import pytest
from rucio.db.sqla.constants import OpenDataDIDState

from nsync.auth.keys import SigningKey
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store import migrations
from nsync.store.database import writing
from nsync.store.intake import WAITING_SEGMENTS_MAX
from nsync.store.log import SqlLog
from nsync.testbed.layout import free_ports
from tests.support.federation import KEYS
from tests.support.nodes import LOOPBACK, Federation, Peer, Site, applied, ask, damage, reports, stored, wait_until

RUCIO_NSYNC = (str(Path(sys.executable).with_name("rucio-nsync")),)

FILES = 1500
"""A changeset that takes about a second to write: time enough to stop the node amid it."""


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def frames_of(site: Site) -> list[bytes]:
    """Publish what the users of `site` wrote; everything in its logs."""
    assert site.work() >= 1
    return site.frames()


# ---- exchange


def test_two_nodes_exchange_what_users_write_while_they_run(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms", ["cms"])
    nodes = [site.start() for site in (atlas, cms)]
    for node in nodes:
        node.wait_for_ping()
    for author, reader in ((atlas, cms), (cms, atlas)):
        author.add_scope(author.name)
        author.publish_dataset(author.name, "d1", doi=f"10.5072/{author.name.upper()}.1")
        began = time.monotonic()
        expected = "SELECT state FROM dids_opendata WHERE scope = ? AND state = 'P'"
        wait_until(lambda: ask(reader.path, expected, author.name), lambda: f"{author.name}'s dataset at {reader.name}")  # noqa: B023
        print(f"{author.name} to {reader.name}: {time.monotonic() - began:.2f} s")
    assert atlas.rows() == cms.rows()
    assert {row[1] for row in cms.rows()["dids"]} >= {"d1", "d1.f0", "d1.f1", "d1.f2"}
    for node in nodes:
        node.stop()


def test_run_once_exchanges_with_every_peer_and_says_who_is_down(bed: Federation) -> None:
    atlas, cms, belle2 = bed.site("atlas", ["atlas"]), bed.site("cms"), bed.site("belle2")
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    atlas_node, belle2_node = atlas.start(), belle2.start()
    atlas_node.wait_for_ping()
    belle2_node.wait_for_ping()
    wait_until(lambda: applied(atlas.path, atlas.author), lambda: "atlas publishes")

    once = cms.start("--run-once", "--json", program=RUCIO_NSYNC)
    assert once.ended() == 0, once.said()
    assert {(r["peer"], r["error"]) for r in reports(once)} == {("atlas", ""), ("belle2", "")}
    assert sum(r["pulled"] for r in reports(once)) >= 1
    assert cms.rows() == atlas.rows() and cms.rows()["dids_opendata"] == {("atlas", "d1", "P")}

    belle2_node.stop()
    once = cms.start("--run-once", "--json")
    assert once.ended() == 5, once.said()
    found = {r["peer"]: r for r in reports(once)}
    assert found["atlas"] == {"peer": "atlas", "pulled": 0, "pushed": 0, "error": ""}
    assert bed.charter.by_name("belle2").url in found["belle2"]["error"]
    assert once.said().splitlines()[-1].startswith("Error: belle2 ("), "the last line is for people"
    atlas_node.stop()


def test_run_once_takes_a_backlog_of_any_length(bed: Federation) -> None:
    """More than twice what may wait here, so that an exchange before the work and one after it would not do."""
    count = 2 * WAITING_SEGMENTS_MAX + 100
    atlas, cms = bed.site("atlas"), bed.site("cms")
    with writing(atlas.engine) as connection:
        log = SqlLog(connection, bed.authority)
        for _ in range(count):
            log.publish([ACKNOWLEDGE], atlas.author, KEYS["atlas"].sign, atlas.now_ms)
    node = atlas.serve()
    once = cms.start("--run-once", "--json")
    assert once.ended(240) == 5, once.said()
    assert {r["peer"]: r["pulled"] for r in reports(once)} == {"atlas": count, "belle2": 0}
    assert applied(cms.path, atlas.author) == count
    node.stop()


# ---- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_work_stops_it_in_order(number: signal.Signals, bed: Federation) -> None:
    """The transaction at hand ends, a peer that does not answer is not waited for, and nobody holds the database."""
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms")
    atlas.add_scope("atlas")
    publish_large(atlas)
    frames = frames_of(atlas)
    with closing(socket.socket()) as silent:
        silent.bind((LOOPBACK, bed.ports["belle2"]))
        silent.listen()
        node = cms.serve()
        assert Peer(bed, "atlas", "cms").push(frames).rejected == ()
        wait_until(lambda: is_at_work(cms.path), lambda: "it writes")
        node.stop(number)
    assert not is_locked(cms.path)
    assert damage(cms.path) == []
    files = ask(cms.path, "SELECT count(*) FROM dids WHERE did_type = 'F'"), ask(cms.path, "SELECT count(*) FROM replicas")
    assert applied(cms.path, atlas.author) > 0 and files == ([(FILES,)], [(FILES,)])
    assert cms.rows() == atlas.rows()
    assert "stopped" in node.said() and "Traceback" not in node.said(), node.said()


def publish_large(atlas: Site) -> None:
    """One public dataset of FILES files, in pieces that Rucio takes on SQLite."""
    atlas.add_did("atlas", "large")
    for start in range(0, FILES, 250):
        names = [f"large.f{i}" for i in range(start, start + 250)]
        atlas.add_files("atlas", names)
        atlas.attach("atlas", "large", [("atlas", name) for name in names])
    atlas.set_open("atlas", "large", False)
    atlas.add_open_data("atlas", "large")
    atlas.set_open_data("atlas", "large", state=OpenDataDIDState.PUBLIC)


def is_locked(path: Path) -> bool:
    """Whether somebody writes at this moment."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


def is_at_work(path: Path) -> bool:
    """Whether somebody writes for longer than a heartbeat takes."""
    return all(is_locked(path) and (time.sleep(0.05) or True) for _ in range(4))


# ---- what is wrong, said in one line


def no_charter(cms: Site) -> None:
    cms.options["charter"] = str(cms.home / "nowhere.json")


def anothers_key(cms: Site) -> None:
    SigningKey(bytes(32)).save(cms.home / "other.key")
    cms.options["key"] = str(cms.home / "other.key")


def a_scope_of_another(cms: Site) -> None:
    cms.options["shared_scopes"] = "cms, atlas"


def no_tables(cms: Site) -> None:
    cms.close()
    with closing(sqlite3.connect(cms.path)) as connection, connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
    migrations.downgrade(cms.engine, "base")


def no_port(cms: Site) -> None:
    cms.options["listen"] = LOOPBACK


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_charter, "nowhere.json: No such file or directory; put the federation's signed charter there"),
        (anothers_key, f"the charter expects {KEYS['cms'].public.hex()[:12]}… for cms"),
        (a_scope_of_another, "the charter does not let cms write in scope 'atlas'"),
        (no_tables, "run 'nsync bridge install'"),
        (no_port, "it should be ADDRESS:PORT"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_node_that_cannot_start_says_why_in_one_line(spoil: Callable[[Site], None], said: str, bed: Federation) -> None:
    cms = bed.site("cms", ["cms"])
    spoil(cms)
    node = cms.start()
    assert node.ended() == 1
    (line,) = [line for line in node.said().splitlines() if line]
    assert line.startswith("Error: ") and said in line


def test_a_node_whose_port_is_taken_says_so(bed: Federation) -> None:
    cms = bed.site("cms")
    with closing(socket.socket()) as taken:
        taken.bind((LOOPBACK, bed.ports["cms"]))
        taken.listen()
        node = cms.start()
        assert node.ended() == 1
    assert node.said().splitlines()[-1].startswith("Error: ") and str(bed.ports["cms"]) in node.said(), node.said()
    assert "Traceback" not in node.said()


# ---- a Rucio that it does not know


def test_beside_an_unknown_rucio_schema_it_gossips_and_writes_no_rows(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms", ["cms"])
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    frames = frames_of(atlas)
    cms.add_scope("cms")
    cms.publish_dataset("cms", "d1")
    ((known,),) = ask(cms.path, "SELECT version_num FROM alembic_version")
    set_head(cms, "ffffffffffff")
    waiting = ask(cms.path, "SELECT count(*) FROM nsync_outbox")

    node = cms.serve()
    peer = Peer(bed, "atlas", "cms")
    assert peer.push(frames).stored == len(frames)
    wait_until(lambda: "Rucio's schema is at ffffffffffff" in node.said(), node.said)
    time.sleep(1)  # two rounds of the bridge
    assert stored(cms.path) == peer.acknowledged
    assert applied(cms.path, atlas.author) == 0
    assert ask(cms.path, "SELECT count(*) FROM dids WHERE scope = 'atlas'") == [(0,)]
    assert ask(cms.path, "SELECT count(*) FROM nsync_outbox") == waiting, "and it publishes nothing that it may misread"
    assert node.said().count("Rucio's schema is at") == 1, "it says so once"

    set_head(cms, known)
    wait_until(lambda: applied(cms.path, atlas.author), node.said)
    wait_until(lambda: applied(cms.path, cms.author), node.said)
    assert ask(cms.path, "SELECT state FROM dids_opendata WHERE scope = 'atlas'") == [("P",)]
    node.stop()


def set_head(site: Site, head: str) -> None:
    with closing(sqlite3.connect(site.path, timeout=30)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (head,))


def test_run_once_applies_what_waits_though_it_publishes_much(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms", ["cms"])
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    cms.add_scope("cms")
    cms.publish_dataset("cms", "d1", files=200)
    assert cms.bridge.receive(frames_of(atlas), "atlas").rejected == ()

    once = cms.start("--run-once")
    assert once.ended() == 5, once.said()
    assert applied(cms.path, cms.author) > 200 and ask(cms.path, "SELECT count(*) FROM nsync_outbox") == [(0,)]
    assert applied(cms.path, atlas.author) > 0, once.said()


# ---- metrics


def test_metrics_tell_what_the_node_did(bed: Federation) -> None:
    atlas = bed.site("atlas", ["atlas"])
    (port,) = free_ports(1)
    atlas.options["metrics"] = f"127.0.0.1:{port}"
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    node = atlas.start()
    node.wait_for_ping()

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("nsync_")}

    wait_until(lambda: metrics()["nsync_published_ops_total"] >= 4, lambda: str(metrics()))
    assert metrics()['nsync_applied_changesets_total{author="atlas"}'] >= 1
    assert metrics()["nsync_write_lock_seconds_sum"] > 0
    wait_until(lambda: metrics().get('nsync_peer_failures{peer="cms"}', 0) >= 1, lambda: str(metrics()))
    node.stop()
