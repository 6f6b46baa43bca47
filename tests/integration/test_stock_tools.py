"""What the stock tools of Rucio show and do at an instance that has foreign data: real servers, `rucio` and its daemons, nothing else.

atlas shares an open dataset in atlas.data, with a file at a deterministic and one at a non-deterministic RSE, and publishes open data.
cms receives on SQLite, belle2 on PostgreSQL.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from nsync.testbed import control, layout, stock
from nsync.testbed.instance import ACCOUNT, client_environment, server_environment
from nsync.testbed.layout import Instance, Layout
from nsync.testbed.stock import rucio
from tests.integration.test_testbed import nsync
from tests.support.postgres import Server

pytestmark = [pytest.mark.servers, pytest.mark.postgres, pytest.mark.timeout(600)]

ARRIVAL_S = 120
RUN, NDET = "atlas.data:run1", "NDET"
RECEIVERS = ["cms", "belle2"]
READ_WRITE = {"read": 1, "write": 1, "delete": 1}
DOMAINS = {"lan": READ_WRITE, "wan": {**READ_WRITE, "third_party_copy_read": 1, "third_party_copy_write": 0}}


def query(instance: Instance, sql: str) -> list[tuple[Any, ...]]:
    engine = create_engine(instance.database_url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(sql))]
    engine.dispose()
    return found


def await_rows(instance: Instance, sql: str, count: int) -> None:
    """Wait until `sql` finds `count` rows at `instance`."""
    deadline = time.monotonic() + ARRIVAL_S
    while len(found := query(instance, sql)) != count:
        assert time.monotonic() < deadline, f"{instance.name} has {found}, not {count} rows of {sql}"
        time.sleep(0.5)


def said_to(instance: Instance, *arguments: str) -> str:
    """All that `rucio` says, whatever its exit code: 'rucio upload' ends with 0 also when it uploaded nothing."""
    command = [stock.RUCIO, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=client_environment(instance))
    return done.stdout + done.stderr


def file_of(instance: Instance, name: str) -> Path:
    path = instance.home / "made" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(name.encode() * 1000)
    return path


def share_data(atlas: Instance) -> None:
    """The dataset run1: f1 at the deterministic RSE, f2 at one that has paths of its own."""
    storage = atlas.home / "ndet"
    storage.mkdir()
    rucio(atlas, "scope", "add", "atlas.data", "--account", ACCOUNT)
    rucio(atlas, "rse", "add", NDET, "--non-deterministic")
    door = ("--hostname", "localhost", "--scheme", "file", "--port", "0", "--impl", "rucio.rse.protocols.posix.Default")
    rucio(atlas, "rse", "protocol", "add", NDET, *door, "--prefix", f"{storage}/", "--domain-json", json.dumps(DOMAINS))
    rucio(atlas, "rse", "attribute", "set", NDET, "--key", "OpenData", "--value", "True")
    rucio(atlas, "account", "limit", "set", ACCOUNT, "--rse", NDET, "--bytes", str(10**12))
    rucio(atlas, "did", "add", "--type", "dataset", RUN)
    rucio(atlas, "did", "metadata", "set", RUN, "--key", "campaign", "--value", "mc23")
    rucio(atlas, "upload", "--rse", "DISK", "--scope", "atlas.data", RUN, str(file_of(atlas, "f1")))
    pfn = f"file://localhost:0{storage}/some/where/f2.root"
    rucio(atlas, "upload", "--rse", NDET, "--scope", "atlas.data", "--pfn", pfn, RUN, str(file_of(atlas, "f2")))


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, postgres_server: Server) -> Iterator[Layout]:
    directory = tmp_path_factory.mktemp("stock")
    with postgres_server.database() as url:
        planned = layout.plan(directory, 3).sharing({"atlas": ("atlas.data",)})
        layout.save(replace(planned, instances=tuple(replace(i, database=url) if i.name == "belle2" else i for i in planned.instances)))
        try:
            done = nsync("testbed", "up", "--dir", directory, "--detach", "--share", "atlas=atlas.data")
            assert done.returncode == 0, done.stdout + done.stderr
            made = layout.load(directory)
            atlas, *receivers = made.instances
            share_data(atlas)
            stock.add_scope(atlas)
            stock.publish(atlas, 1, 3)
            for receiver in receivers:
                await_rows(receiver, "SELECT name FROM replicas WHERE scope = 'atlas.data' AND state = 'A'", 2)
                await_rows(receiver, "SELECT name FROM contents WHERE scope = 'atlas.data'", 2)
                await_rows(receiver, "SELECT name FROM dids_opendata WHERE state = 'P'", 1)
            yield made
        finally:
            control.down(layout.load(directory))


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest, bed: Layout) -> Instance:
    return bed.instance(request.param)


def test_the_receiver_is_on_the_back_end_it_should_be_on(bed: Layout) -> None:
    assert [bed.instance(name).database_url.split("+")[0] for name in RECEIVERS] == ["sqlite", "postgresql"]


def test_content_and_metadata_are_listed(receiver: Instance) -> None:
    listed = rucio(receiver, "did", "content", "list", RUN)
    assert "atlas.data:f1" in listed and "atlas.data:f2" in listed
    said = rucio(receiver, "did", "metadata", "list", RUN)
    assert "mc23" in said and "nsync-atlas" in said


def test_replicas_are_listed_at_foreign_rses(receiver: Instance) -> None:
    lines = rucio(receiver, "replica", "list", "file", RUN).splitlines()
    (first,) = [line for line in lines if " f1 " in line]
    (second,) = [line for line in lines if " f2 " in line]
    assert "ATLAS_DISK" in first and "ATLAS_NDET" in second and "/some/where/f2.root" in second


def test_files_are_downloaded_from_either_kind_of_rse(receiver: Instance, bed: Layout, tmp_path: Path) -> None:
    rucio(receiver, "download", "--dir", str(tmp_path), RUN)
    made = stock.digests(bed.instance("atlas").home / "made")
    assert {name: stock.digests(tmp_path / "run1").get(name) for name in ("f1", "f2")} == {name: made[name] for name in ("f1", "f2")}


def test_open_data_are_public_without_login(receiver: Instance) -> None:
    def get(path: str) -> Any:
        with urllib.request.urlopen(f"{receiver.server_url}/opendata/public/{path}", timeout=60) as answer:
            return json.loads(answer.read())

    assert "demo-1" in json.dumps(get("dids"))
    shown = get("dids/atlas.open/demo-1?files=1&doi=1")
    assert "10.5072/ATLAS.DEMO.1" in json.dumps(shown)
    assert json.dumps(shown).count("file://localhost") == 3


def test_an_upload_to_a_foreign_rse_is_refused_by_rucio(receiver: Instance) -> None:
    scope = f"{receiver.name}.own"
    rucio(receiver, "scope", "add", scope, "--account", ACCOUNT)
    said = said_to(receiver, "upload", "--rse", "ATLAS_DISK", "--scope", scope, str(file_of(receiver, "mine")))
    assert "ATLAS_DISK is not available for writing" in said
    assert query(receiver, f"SELECT name FROM dids WHERE scope = '{scope}'") == []
    rule = said_to(receiver, "rule", "add", RUN, "--copies", "1", "--rses", "ATLAS_NDET")
    assert "not available for writing" in rule and query(receiver, "SELECT id FROM rules WHERE rse_expression = 'ATLAS_NDET'") == [], rule


def test_a_local_rule_covers_foreign_data_also_what_is_attached_later(receiver: Instance, bed: Layout) -> None:
    atlas = bed.instance("atlas")
    rucio(receiver, "rule", "add", RUN, "--copies", "1", "--rses", "DISK")
    rule_locks = "SELECT name FROM locks WHERE scope = 'atlas.data' ORDER BY name"
    before = query(receiver, rule_locks)
    assert before[:2] == [("f1",), ("f2",)]
    later = f"later-{receiver.name}"
    rucio(atlas, "upload", "--rse", "DISK", "--scope", "atlas.data", RUN, str(file_of(atlas, later)))
    await_rows(receiver, f"SELECT child_name FROM contents WHERE child_name = '{later}'", 1)
    judge = [str(Path(sys.executable).with_name("rucio-judge-evaluator")), "--run-once"]
    subprocess.run(judge, env=server_environment(receiver), check=True, timeout=120, capture_output=True)
    assert query(receiver, rule_locks) == sorted([*before, (later,)])
    requests = query(receiver, "SELECT name FROM requests WHERE scope = 'atlas.data'")
    assert {(name,) for (name,) in requests} == {*before, (later,)}
    copying = f"SELECT r.lock_cnt, r.state FROM replicas r JOIN rses s ON s.id = r.rse_id WHERE s.rse = 'DISK' AND r.name = '{later}'"
    assert query(receiver, copying) == [(1, "C")]
