"""What one instance shares, the others have: rows of real Rucio databases."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
from rucio.db.sqla.constants import OpenDataDIDState

from nsync.catalogue.entries import Entry
from nsync.namespace.keys import Fact
from nsync.rucio_bridge.rows import Rows
from tests.support.instances import Instance, settle


def test_a_shared_scope_reaches_every_instance(instances: list[Instance]) -> None:
    atlas, cms, belle2 = instances
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1", "f2"])
    atlas.add_did("atlas", "d1")
    atlas.attach("atlas", "d1", [("atlas", "f1"), ("atlas", "f2")])
    settle(instances)
    rows = atlas.rows()
    assert {(name, is_open) for _, name, _, is_open, *_ in rows["dids"]} == {("f1", None), ("f2", None), ("d1", 1)}
    assert len(rows["contents"]) == 2 and len(rows["replicas"]) == 2
    assert cms.rows() == belle2.rows() == rows


def test_public_open_data_is_shared_with_its_closure_and_nothing_else(instances: list[Instance]) -> None:
    atlas, cms, belle2 = instances
    belle2.bridge.share([])
    belle2.add_scope("belle2.private")
    belle2.add_files("belle2.private", ["secret"])
    settle(instances)
    assert belle2.query("SELECT count(*) FROM nsync_segment") == [(0,)]
    belle2.publish_dataset("belle2.private", "d1", doi="10.5072/BELLE2.1")
    settle(instances)
    rows = belle2.rows()
    assert {row[1] for row in rows["dids"]} == {"d1", "d1.f0", "d1.f1", "d1.f2"}
    assert rows["dids_opendata"] == {("belle2.private", "d1", "P")}
    assert rows["dids_opendata_doi"] == {("belle2.private", "d1", "10.5072/BELLE2.1")}
    assert atlas.rows() == cms.rows() == rows
    assert cms.query("SELECT name FROM dids WHERE name = 'secret'") == []
    belle2.set_open_data("belle2.private", "d1", state=OpenDataDIDState.SUSPENDED)
    settle(instances)
    assert atlas.rows()["dids_opendata"] == cms.rows()["dids_opendata"] == {("belle2.private", "d1", "S")}


def test_a_second_cycle_without_news_writes_nothing(instances: list[Instance]) -> None:
    atlas, _, _ = instances
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    settle(instances)

    def everything(instance: Instance) -> dict[str, object]:
        tables = [name for (name,) in instance.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        return {table: instance.query(f"SELECT * FROM {table}") for table in tables}

    before = [everything(instance) for instance in instances]
    settle(instances)
    for instance in instances:
        instance.bridge.retry_parked(instance.now_ms)
    assert [everything(instance) for instance in instances] == before


def test_an_instance_without_any_shared_scope_publishes_nothing(template_database: Path, tmp_path: Path) -> None:
    cms = Instance(template_database, tmp_path, "cms")
    cms.add_scope("cms")
    cms.add_files("cms", ["f1"])
    cms.add_did("cms", "d1")
    cms.attach("cms", "d1", [("cms", "f1")])
    cms.add_open_data("cms", "d1")  # a draft is nobody else's business
    cms.work()
    assert cms.query("SELECT count(*) FROM nsync_segment") == [(0,)]
    assert cms.query("SELECT count(*) FROM nsync_outbox") == [(0,)]
    cms.close()


def test_a_foreign_rse_follows_its_instance(instances: list[Instance]) -> None:
    """Its doors change, close and open again; the row here stays read-only."""
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1"])
    settle(instances)

    def doors() -> list[tuple[object, ...]]:
        columns = "p.prefix, p.read_wan, p.write_wan, p.delete_wan"
        return cms.query(f"SELECT {columns} FROM rse_protocols p JOIN rses r ON r.id = p.rse_id WHERE r.rse = 'ATLAS_DISK'")

    ((prefix, *_),) = doors()
    for change, expected in (
        ("prefix = '/elsewhere/'", [("/elsewhere/", 1, 0, 0)]),
        ("read_lan = 0, read_wan = 0", []),
        (f"read_wan = 1, prefix = '{prefix}'", [(prefix, 1, 0, 0)]),
    ):
        with atlas.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE rse_protocols SET {change}")
        settle(instances)
        assert doors() == expected
    assert cms.query("SELECT availability_write, availability_delete FROM rses WHERE rse = 'ATLAS_DISK'") == [(0, 0)]
    assert cms.parked() == {}


def test_what_is_added_to_public_data_costs_what_is_added(instances: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the data again, which may have a million files."""
    belle2 = instances[2]
    belle2.bridge.share([])
    belle2.add_scope("belle2.open")
    belle2.publish_dataset("belle2.open", "d1", files=40)
    settle(instances)
    belle2.set_open("belle2.open", "d1", True)
    belle2.add_files("belle2.open", ["late"])
    belle2.attach("belle2.open", "d1", [("belle2.open", "late")])
    belle2.set_open("belle2.open", "d1", False)
    sizes: list[int] = []
    read = Rows.read

    def counted(self: Rows, facts: Collection[Fact]) -> dict[Fact, Entry]:
        sizes.append(len(facts))
        return read(self, facts)

    monkeypatch.setattr(Rows, "read", counted)
    belle2.work()
    assert max(sizes) < 10
    monkeypatch.undo()
    settle(instances)
    assert instances[0].rows() == belle2.rows() and len(belle2.rows()["replicas"]) == 41
