"""Promises that a review found broken, each by the shortest story that showed it."""

from __future__ import annotations

import pytest
from rucio.common.types import InternalScope
from rucio.core.replica import add_replicas
from rucio.core.rse import add_rse, del_rse, get_rse_id
from rucio.db.sqla.constants import DIDType, OpenDataDIDState

from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Replica, Rse
from nsync.namespace.ops import Assert, Retract
from nsync.rucio_bridge.materialise import Materialise
from tests.support.federation import Writer
from tests.support.instances import ROOT, Instance, settle

SHARED = "atlas.shared"


def test_nothing_in_a_private_scope_of_the_same_name_is_taken_for_the_remotes(instances: list[Instance]) -> None:
    """R5.7: the rows agree, and the remote retracts them."""
    cms = instances[1]
    cms.bridge.share([])
    cms.add_scope("atlas.priv")
    cms.add_did("atlas.priv", "empty")
    cms.add_did("atlas.priv", "d1")
    cms.add_files("atlas.priv", ["f1"])
    cms.attach("atlas.priv", "d1", [("atlas.priv", "f1")])
    rows = "SELECT * FROM dids WHERE scope = 'atlas.priv' ORDER BY name"
    before = cms.query(rows), cms.query("SELECT * FROM contents")
    atlas = Writer("atlas")
    empty, d1, f1 = (Did("atlas.priv", name) for name in ("empty", "d1", "f1"))
    identity = Identity(keys.FILE, 10, bytes.fromhex("00000001"))
    edge, evil = Attachment(d1, f1), Did("atlas", "evil")
    atlas.say(*(Assert(did, Identity(keys.DATASET)) for did in (empty, d1)), Assert(f1, identity), Assert(edge, True))
    atlas.say(Assert(evil, identity), Assert(Attachment(d1, evil), True))
    atlas.say(Retract(edge), Retract(empty), Retract(d1))
    for segment in atlas.log:
        assert cms.bridge.receive([segment.frame], "atlas").rejected == ()
        cms.work()
    assert (cms.query(rows), cms.query("SELECT * FROM contents")) == before


def test_replicas_at_an_rse_that_is_not_lent_stay_private(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    with atlas.session() as session:
        secret = add_rse("SECRET", session=session)
        add_replicas(secret, [{"scope": InternalScope("atlas"), "name": "f1", "bytes": 1, "adler32": "00000001"}], ROOT, session=session)
    settle(instances)
    assert cms.names("atlas") == {"f1"}
    assert not any(isinstance(fact, (Rse, Replica)) for fact in cms.catalogue())


def test_a_did_made_again_inherits_nothing(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    settle(instances)
    atlas.delete_did("atlas", "d1")
    settle(instances)
    atlas.add_did("atlas", "d1")
    settle(instances)
    for instance in (atlas, cms):
        assert instance.query("SELECT is_open FROM dids WHERE name = 'd1'") == [(1,)]
        assert instance.query("SELECT * FROM dids_opendata") == instance.query("SELECT * FROM dids_opendata_doi") == []


def test_a_guest_takes_back_nothing_but_its_own() -> None:
    """R3.4, 6.5: not the home's PUBLIC, and not its close."""
    atlas, cms = Writer("atlas"), Writer("cms")
    d1 = Did(SHARED, "d1")
    closed, opened = Attribute(d1, keys.CLOSED), Attribute(d1, keys.OPENDATA)
    atlas.say(Assert(d1, Identity(keys.DATASET)), Assert(closed, True), Assert(opened, keys.PUBLIC))
    cms.hear(atlas.log)
    cms.say(Retract(closed), Retract(opened))
    atlas.hear(cms.log)
    atlas.say(Assert(Did("atlas", "news"), Identity(keys.DATASET)))
    entry = atlas.state.catalogue[d1]
    assert (entry.closed, entry.opendata) == (True, keys.PUBLIC)  # type: ignore[union-attr]


def test_a_replica_of_other_bytes_hides_in_any_order() -> None:
    atlas, cms = Writer("atlas"), Writer("cms")
    f1, disk = Did(SHARED, "f1"), Rse("cms", "DISK")
    atlas.say(Assert(f1, Identity(keys.FILE, 1)))
    cms.say(Assert(disk, True), Assert(Replica(f1, disk), "p/f1"))
    cms.say(Assert(f1, Identity(keys.FILE, 2)))
    readers = [Writer("belle2"), Writer("belle2")]
    readers[0].hear([*atlas.log, *cms.log])
    readers[1].hear([*cms.log, *atlas.log])
    for reader in readers:
        assert reader.state.catalogue == reader.state.recomputed()[0] == readers[0].state.catalogue
        assert Replica(f1, disk) not in reader.state.catalogue


def test_a_cycle_is_broken_when_a_container_of_it_goes() -> None:
    atlas = Writer("atlas")
    a, b, c = (Did("atlas", name) for name in "abc")
    atlas.say(*(Assert(did, Identity(keys.CONTAINER)) for did in (a, b, c)))
    for parent, child in ((a, b), (b, c), (c, a)):
        atlas.say(Assert(Attachment(parent, child), True))
    assert Attachment(c, a) not in atlas.state.catalogue
    atlas.say(Retract(b))
    assert Attachment(c, a) in atlas.state.catalogue
    assert atlas.state.catalogue == atlas.state.recomputed()[0]


def test_content_that_comes_later_below_a_public_container_is_published(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.bridge.share([])
    atlas.add_scope("atlas.more")
    atlas.add_did("atlas.more", "d1")
    atlas.add_did("atlas.more", "c1", DIDType.CONTAINER)
    atlas.attach("atlas.more", "c1", [("atlas.more", "d1")])
    atlas.set_open("atlas.more", "c1", False)
    atlas.add_open_data("atlas.more", "c1")
    atlas.set_open_data("atlas.more", "c1", state=OpenDataDIDState.PUBLIC)
    settle(instances)
    atlas.add_files("atlas.more", ["f2"])
    atlas.attach("atlas.more", "d1", [("atlas.more", "f2")])
    settle(instances)
    assert cms.names("atlas.more") == {"c1", "d1", "f2"}
    assert atlas.rows() == cms.rows()


def test_replicas_that_went_with_their_rse_are_offered_no_more(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1"])
    settle(instances)
    assert len(cms.rows()["replicas"]) == 1
    atlas.delete_replicas("atlas", ["f1"])
    with atlas.session() as session:
        del_rse(get_rse_id("DISK", session=session), session=session)
    settle(instances)
    assert cms.rows()["replicas"] == frozenset()


def test_a_door_that_moves_is_followed(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1"])
    settle(instances)
    with atlas.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rse_protocols SET hostname = 'elsewhere.example.org', port = 1094")
    settle(instances)
    doors = "SELECT p.hostname, p.port FROM rse_protocols p JOIN rses r ON r.id = p.rse_id WHERE r.rse = 'ATLAS_DISK'"
    assert cms.query(doors) == [("elsewhere.example.org", 1094)]


def test_a_foreign_replica_that_a_user_declared_bad_can_go_and_come_back(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1"])
    atlas.add_did("atlas", "d1")
    atlas.attach("atlas", "d1", [("atlas", "f1")])
    settle(instances)
    with cms.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE replicas SET state = 'B'")
    with atlas.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE replicas SET state = 'U'")
    settle(instances)
    assert cms.query("SELECT * FROM replicas") == []
    with atlas.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE replicas SET state = 'A'")
    settle(instances)
    assert cms.query("SELECT state FROM replicas") == [("A",)] and cms.parked() == {}


def test_a_changeset_that_fails_here_stops_nobody_elses(instances: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, cms, belle2 = instances
    for instance in (atlas, cms):
        instance.add_scope(instance.name)
        instance.add_did(instance.name, "d1")
        instance.work()
        belle2.fetch(instance)
    run = Materialise.run

    def fails_for_atlas(self: Materialise, batch: str, now_ms: int) -> bool:
        assert not batch.startswith("atlas"), "a bug"
        return run(self, batch, now_ms)

    monkeypatch.setattr(Materialise, "run", fails_for_atlas)
    for _ in range(3):
        try:
            belle2.work()
        except AssertionError:
            continue
    assert belle2.names("cms") == {"d1"} and belle2.names("atlas") == set()
    monkeypatch.undo()
    belle2.now_ms += 100_000
    belle2.work()
    assert belle2.names("atlas") == {"d1"}
