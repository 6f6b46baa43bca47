"""The operator lets a parked changeset be written without what does not fit, and that waits on by itself (R7.6)."""

from __future__ import annotations

import pytest
from rucio.core.rse import add_rse

from nsync.errors import ConfigError
from nsync.namespace.keys import Attachment, Did, Fact, Rse
from nsync.rucio_bridge import parked
from tests.support.instances import Instance, everything, settle

SHARED = "atlas.shared"


def batches(instance: Instance) -> dict[str, set[Fact]]:
    with instance.sessions() as session:
        found: dict[str, set[Fact]] = {}
        for one in parked.listing(session):
            found.setdefault(one.batch, set()).add(one.fact)
        return found


def park_a_dataset(instances: list[Instance]) -> str:
    """Of three files that atlas publishes with their dataset, cms has one of another content; returns the batch."""
    atlas, cms, _ = instances
    cms.bridge.share([])
    atlas.add_scope(SHARED)
    settle(instances)
    cms.add_files(SHARED, ["f1"], 7, "00000007")
    atlas.add_files(SHARED, ["f1", "f2", "f3"], 1, "00000001")
    atlas.add_did(SHARED, "d1")
    atlas.attach(SHARED, "d1", [(SHARED, name) for name in ("f1", "f2", "f3")])
    atlas.set_open(SHARED, "d1", False)
    settle(instances)
    (batch,) = batches(cms)
    assert cms.names(SHARED) == {"f1"}
    return batch


def make_room(cms: Instance) -> None:
    cms.delete_replicas(SHARED, ["f1"])


def accept(cms: Instance, batch: str) -> None:
    cms.bridge.accept(batch)
    cms.bridge.retry_parked(cms.now_ms)


def test_the_rest_is_written_and_what_does_not_fit_waits_by_itself(instances: list[Instance]) -> None:
    _, cms, _ = instances
    batch = park_a_dataset(instances)
    before = everything(cms)
    found = cms.bridge.would_accept(batch, cms.now_ms)
    assert everything(cms) == before
    accept(cms, batch)
    assert cms.names(SHARED) == {"f1", "f2", "f3", "d1"} and cms.children(SHARED, "d1") == {"f2", "f3"}
    assert cms.query("SELECT length, bytes, is_open FROM dids WHERE name = 'd1'") == [(2, 2, 0)]
    rest = batches(cms)[f"{batch} rest"]
    assert rest == {one.fact for one in found.rest} and found.written == len(before["nsync_parked"]) - len(rest)
    f1 = Did(SHARED, "f1")
    assert rest == {f1, Attachment(Did(SHARED, "d1"), f1), *(fact for fact in rest if getattr(fact, "did", None) == f1)} and len(rest) == 3
    assert cms.query("SELECT bytes FROM dids WHERE name = 'f1'") == [(7,)]


def test_nothing_loops_and_the_rest_comes_once_there_is_room(instances: list[Instance]) -> None:
    atlas, cms, belle2 = instances
    accept(cms, park_a_dataset(instances))
    cms.bridge.retry_parked(cms.now_ms)
    before = everything(cms)
    cms.bridge.retry_parked(cms.now_ms + 60_000)
    assert cms.work() == 0 and everything(cms) == before
    make_room(cms)
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {} and cms.children(SHARED, "d1") == {"f1", "f2", "f3"}
    assert cms.query("SELECT length, bytes FROM dids WHERE name = 'd1'") == [(3, 3)]
    settle(instances)
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_what_comes_later_is_written_but_for_what_hangs_on_the_rest(instances: list[Instance]) -> None:
    atlas, cms, belle2 = instances
    accept(cms, park_a_dataset(instances))
    atlas.add_did(SHARED, "d2")
    atlas.add_files(SHARED, ["f4"])
    atlas.attach(SHARED, "d2", [(SHARED, "f1"), (SHARED, "f4")])
    settle(instances)
    assert cms.children(SHARED, "d2") == {"f4"}
    assert Attachment(Did(SHARED, "d2"), Did(SHARED, "f1")) in cms.parked() and Did(SHARED, "d2") not in cms.parked()
    assert all(name.endswith(" rest") for name in batches(cms))
    make_room(cms)
    for _ in range(2):
        cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {}
    settle(instances)
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_what_comes_later_and_does_not_fit_itself_waits_as_a_whole(instances: list[Instance]) -> None:
    """The operator accepted one changeset, and no other."""
    atlas, cms, _ = instances
    batch = park_a_dataset(instances)
    accept(cms, batch)
    rest = batches(cms)
    cms.add_files(SHARED, ["f5"], 7, "00000007")
    atlas.add_files(SHARED, ["f5", "f6"])
    atlas.add_did(SHARED, "d2")
    atlas.attach(SHARED, "d2", [(SHARED, name) for name in ("f1", "f5", "f6")])
    settle(instances)
    assert cms.names(SHARED).isdisjoint({"f6", "d2"})
    assert {Did(SHARED, "f5"), Did(SHARED, "f6")} <= cms.parked().keys()
    assert batches(cms).items() >= rest.items()


def test_who_retracts_what_waits_by_itself_is_heard(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    accept(cms, park_a_dataset(instances))
    atlas.delete_replicas(SHARED, ["f1"])
    settle(instances)
    cms.bridge.retry_parked(cms.now_ms)
    assert Did(SHARED, "f1") not in cms.parked() and cms.children(SHARED, "d1") == {"f2", "f3"}
    assert cms.query("SELECT bytes FROM dids WHERE name = 'f1'") == [(7,)]


def test_data_are_not_held_up_by_a_doi_that_is_borne_here(instances: list[Instance]) -> None:
    """What fits but for its open data is known only once all names are given up."""
    atlas, cms, belle2 = instances
    cms.bridge.share([])
    atlas.add_scope("atlas")
    cms.add_scope("private")
    cms.publish_dataset("private", "bearer", doi="10.5072/ATLAS.1")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    settle(instances)
    (batch,) = batches(cms)
    accept(cms, batch)
    assert cms.names("atlas") == {"d1.f0", "d1.f1", "d1.f2"}
    assert Did("atlas", "d1") in cms.parked()
    cms.set_open_data("private", "bearer", doi="10.5072/OTHER.1")
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {} and cms.children("atlas", "d1") == {"d1.f0", "d1.f1", "d1.f2"}
    settle(instances)
    assert atlas.rows() == belle2.rows() == cms.rows()


def test_files_are_written_without_replicas_at_an_rse_that_does_not_fit(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    with cms.session() as session:
        add_rse("ATLAS_DISK", session=session)
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1"])
    settle(instances)
    (batch,) = batches(cms)
    accept(cms, batch)
    assert cms.names("atlas") == {"f1"}
    atlas.add_files("atlas", ["f2"])
    settle(instances)
    assert cms.names("atlas") == {"f1", "f2"}
    assert {getattr(fact, "did", fact) for fact in cms.parked()} == {Rse("atlas", "DISK"), Did("atlas", "f1"), Did("atlas", "f2")}
    with cms.session() as session:
        session.connection().exec_driver_sql("UPDATE rses SET rse = 'TAPE' WHERE rse = 'ATLAS_DISK'")
    for _ in range(2):
        cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {} and cms.rows() == atlas.rows()


def test_what_cannot_be_accepted(instances: list[Instance]) -> None:
    _, cms, _ = instances
    batch = park_a_dataset(instances)
    with pytest.raises(ConfigError, match="nothing is parked as 'atlas 7-9'"):
        cms.bridge.accept("atlas 7-9")
    cms.bridge.accept(batch)
    with pytest.raises(ConfigError, match="is accepted already"):
        cms.bridge.accept(f"{batch} rest")
