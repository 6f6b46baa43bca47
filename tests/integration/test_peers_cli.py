"""What an operator sees of peers beside a running node: `nsync peer`, `nsync status`, health; and the clock that must be right (R3.7)."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest

from nsync.log.stored import PeerRecord
from nsync.store.peers import PeerTable
from tests.support.nodes import Federation, Site, applied, ask, nsync, wait_until
from tests.support.played import Play, played

URLS = build_opener(ProxyHandler({}))


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def said(site: Site, *arguments: str) -> Any:
    return json.loads(nsync(site, *arguments, "--json").stdout)


def peers(site: Site) -> dict[str, Any]:
    return {record["name"]: record for record in said(site, "peer", "list")}


def health(site: Site, what: str) -> tuple[int, Any]:
    try:
        with URLS.open(f"{site.url}/health/{what}", timeout=10) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with closing(error):
            return error.code, json.load(error)


def test_the_table_of_peers_beside_a_running_node(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms")
    for site in (atlas, cms):
        site.options["gossip_interval"] = "1"
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    before = nsync(atlas, "peer", "list")
    assert before.returncode == 5 and before.stdout.count("never") == 2, before.stdout
    first, second = atlas.serve(), cms.serve()
    wait_until(lambda: applied(cms.path, atlas.author), lambda: "cms applies what atlas says")
    wait_until(lambda: peers(cms)["atlas"]["heads"] and peers(cms)["belle2"]["failures"], lambda: "cms keeps how its peers fare")

    found = peers(cms)
    assert found["atlas"]["failures"] == 0 and found["atlas"]["reason"] == "" and found["atlas"]["bytes_in"] > 500
    assert 0 <= found["atlas"]["round_trip_ms"] < 30_000 and abs(found["atlas"]["offset_ms"]) < 30_000
    assert abs(found["atlas"]["contact_ms"] - time.time() * 1000) < 60_000
    assert atlas.author.hex() in {head["author"] for head in found["atlas"]["heads"]}
    assert f":{bed.ports['belle2']}" in found["belle2"]["reason"] and found["belle2"]["contact_ms"] is None

    shown = nsync(cms, "peer", "show", "belle2")
    assert shown.returncode == 5 and "nsync peer reset belle2" in shown.stdout and "times in a row: belle2 (" in shown.stdout
    assert nsync(cms, "peer", "show", "atlas").returncode == 0
    listed = nsync(cms, "peer", "list")
    assert listed.returncode == 5 and "nsync peer ping NAME" in listed.stdout
    stranger = nsync(cms, "peer", "show", "dune")
    assert stranger.returncode == 1 and "the charter names no peer 'dune'; it names atlas, belle2" in stranger.stderr

    answered = said(cms, "peer", "ping", "atlas")
    assert answered["error"] is None and abs(answered["offset_ms"]) < 30_000
    silent = nsync(cms, "peer", "ping", "belle2")
    assert silent.returncode == 5 and "could not be reached" in silent.stderr and len(silent.stderr.splitlines()) == 1
    for node in (first, second):
        node.stop()
    assert peers(atlas)["cms"]["failures"] == 0, "what a node knows at its end is kept too"


def test_a_reset_ends_a_back_off_and_a_restart_remembers_the_failures(bed: Federation) -> None:
    atlas, cms = bed.site("atlas"), bed.site("cms")
    atlas.options["gossip_interval"] = "1"
    node = atlas.serve()
    wait_until(lambda: peers(atlas)["cms"]["failures"], lambda: "cms fails")
    node.stop()
    ask(atlas.path, "SELECT 1")
    since, failures = peers(atlas)["cms"]["since_ms"], peers(atlas)["cms"]["failures"]
    node = atlas.serve()
    wait_until(lambda: peers(atlas)["cms"]["failures"] > failures, lambda: "it is tried again")
    assert abs(peers(atlas)["cms"]["since_ms"] - since) < 1000

    with played(cms, Play()):
        done = nsync(atlas, "peer", "reset", "cms")
        assert done.returncode == 0 and "the node tries cms within 1 s" in done.stdout
        wait_until(lambda: "peer cms: tried now, as an operator asks" in node.said(), lambda: node.said())
        wait_until(lambda: not peers(atlas)["cms"]["failures"], lambda: "cms is in order")
    assert ask(atlas.path, "SELECT count(*) FROM nsync_peer WHERE reset_ms IS NOT NULL") == [(0,)]
    node.stop()


def test_nothing_is_signed_while_the_clock_is_ahead_of_the_peers(bed: Federation) -> None:
    atlas, cms, belle2 = bed.site("atlas", ["atlas"]), bed.site("cms"), bed.site("belle2")
    atlas.options["gossip_interval"] = "0.5"
    atlas.add_scope("atlas")
    play = Play(behind_ms=45_000)
    with played(cms, play), played(belle2, play):
        node = atlas.serve()
        wait_until(lambda: "nothing more is published here: the clock here is more than 30 s ahead" in node.said(), node.said)
        atlas.publish_dataset("atlas", "d1")
        atlas.close()
        status, answer = health(atlas, "ready")
        assert status == 503 and list(answer["reasons"]) == ["clock"], answer
        assert health(atlas, "live") == (200, {"alive": True})
        assert applied(atlas.path, atlas.author) == 0
        assert abs(peers(atlas)["cms"]["offset_ms"] + 45_000) < 5000
        rebuilt = nsync(atlas, "bridge", "rebuild")
        assert rebuilt.returncode == 1 and "nothing is rebuilt: the clock here is more than 30 s ahead" in rebuilt.stderr
        play.behind_ms = 0
        wait_until(lambda: applied(atlas.path, atlas.author), node.said)
        assert "what users do is published again" in node.said()
        wait_until(lambda: health(atlas, "ready") == (200, {"ready": True, "reasons": {}}), lambda: str(health(atlas, "ready")))
    node.stop()


def test_what_peers_wrote_is_shown_as_it_is(bed: Federation) -> None:
    """Not read as the markup of the library that draws the tables."""
    atlas = bed.site("atlas", ["atlas"])
    atlas.add_scope("atlas")
    atlas.work()
    PeerTable(atlas.engine).save([PeerRecord("cms", failures=1, reason="[/b] http://[fe80::1]:8440 [red]:bomb:")])
    with atlas.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE nsync_branch SET refused = '[/i] [red]'")
    listed, status = nsync(atlas, "peer", "list"), nsync(atlas, "status")
    assert listed.returncode == 5 and status.returncode in (0, 4), listed.stderr + status.stderr
    words = listed.stdout.split()
    assert {"[/b]", "http://[fe80::1]:8440", "[red]:bomb:"} <= set(words), listed.stdout
    assert {"[/i]", "[red]"} <= set(status.stdout.split()), status.stdout


def test_readiness_tells_reasons_and_no_secrets(bed: Federation) -> None:
    atlas = bed.site("atlas")
    node = atlas.serve()
    assert health(atlas, "ready")[0] == 200
    ask_now(atlas.path, "UPDATE alembic_version SET version_num = 'tomorrow'")
    wait_until(lambda: health(atlas, "ready")[0] == 503, node.said)
    assert list(health(atlas, "ready")[1]["reasons"]) == ["schema"]
    ask_now(atlas.path, "UPDATE nsync_alembic_version SET version_num = '0000'")
    wait_until(lambda: list(health(atlas, "ready")[1]["reasons"]) == ["database"], node.said)
    text = json.dumps(health(atlas, "ready"))
    assert "nsync bridge install" in text and str(atlas.path) not in text and "tomorrow" not in text
    node.stop()


def ask_now(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute(sql)
