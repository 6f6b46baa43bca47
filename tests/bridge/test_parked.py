"""What waits holds up nothing else, and what left the namespace is not shared anew by whoever still holds it."""

from __future__ import annotations

from rucio.db.sqla.constants import DIDType

from nsync.namespace.keys import Did, Rse
from tests.support.instances import Instance, settle

SHARED = "atlas.shared"


def test_a_parked_changeset_does_not_hold_up_others_at_the_same_rse(instances: list[Instance]) -> None:
    """The clash comes with the changeset that brings the RSE; a later dataset there has nothing to do with it."""
    atlas, cms, _ = instances
    cms.bridge.share([])
    atlas.add_scope(SHARED)
    cms.add_scope(SHARED)
    cms.add_files(SHARED, ["clash"], 7, "00000007")
    atlas.add_files(SHARED, ["clash"], 1, "00000001")
    settle([atlas, cms])
    assert Rse("atlas", "DISK") in cms.parked()
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "other")
    settle([atlas, cms])
    assert cms.query("SELECT count(*) FROM replicas WHERE scope = 'atlas'") == [(3,)]
    assert Rse("atlas", "DISK") not in cms.parked()
    assert Did(SHARED, "clash") in cms.parked()


def test_a_row_that_the_namespace_no_longer_has_is_never_captured_again(instances: list[Instance]) -> None:
    """R5.7: cms may write in the scope."""
    atlas, cms, _ = instances
    remove_what_cms_holds(instances)
    assert cms.query("SELECT name FROM dids WHERE name = 'd1'") == [("d1",)]
    assert "local rules hold it" in cms.parked()[Did(SHARED, "d1")]
    cms.set_open(SHARED, "d1", False)  # the row changes, and is captured
    settle(instances)
    assert atlas.query("SELECT name FROM dids WHERE name = 'd1'") == []
    assert Did(SHARED, "d1") not in atlas.catalogue()


def test_what_left_goes_once_nothing_holds_it(instances: list[Instance]) -> None:
    cms = instances[1]
    remove_what_cms_holds(instances)
    with cms.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM rules")
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.query("SELECT name FROM dids WHERE name = 'd1'") == []
    assert cms.parked() == {}


def test_a_retry_tells_what_it_published_before(instances: list[Instance]) -> None:
    """So that the node can tell its peers."""
    cms = instances[1]
    remove_what_cms_holds(instances)
    cms.add_did(SHARED, "d2")
    worked = cms.bridge.retry_parked(cms.now_ms)
    assert worked.published == 1 and not worked.idle
    assert Did(SHARED, "d2") in cms.catalogue()


def test_what_is_parked_at_its_home_and_deleted_there_is_gone_everywhere(instances: list[Instance]) -> None:
    """Its row was here before something about it did not fit."""
    park_at_atlas(instances, maker=instances[0])
    delete_at_atlas(instances)


def test_what_a_guest_made_is_gone_too_when_it_is_parked_at_its_home_and_deleted_there(instances: list[Instance]) -> None:
    park_at_atlas(instances, maker=instances[1])
    delete_at_atlas(instances)


def test_who_makes_room_for_what_is_parked_removes_nothing(instances: list[Instance]) -> None:
    """The row that goes was another DID of the same name."""
    atlas, cms, _ = instances
    atlas.add_scope(SHARED)
    settle(instances)
    cms.add_files(SHARED, ["clash"], 7, "00000007")
    atlas.add_files(SHARED, ["clash"], 1, "00000001")
    settle(instances)
    assert "exists here as" in cms.parked()[Did(SHARED, "clash")]
    assert Did(SHARED, "clash") in atlas.conflicts()
    cms.delete_replicas(SHARED, ["clash"])
    settle(instances)
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {}
    assert [instance.query("SELECT bytes FROM dids WHERE name = 'clash'") for instance in instances] == [[(1,)]] * 3


def park_at_atlas(instances: list[Instance], maker: Instance) -> None:
    """A dataset that `maker` made gets a DOI which another DID bears at atlas."""
    atlas, cms, _ = instances
    atlas.add_scope(SHARED)
    settle(instances)
    maker.add_did(SHARED, "d1")
    settle(instances)
    atlas.add_scope("atlas.private")
    atlas.add_did("atlas.private", "bearer")
    for owner, did in ((atlas, ("atlas.private", "bearer")), (cms, (SHARED, "d1"))):
        owner.add_open_data(*did)
        owner.set_open_data(*did, doi="10.5072/ATLAS.1")
    settle(instances)
    assert "belongs to atlas.private:bearer here" in atlas.parked()[Did(SHARED, "d1")]


def delete_at_atlas(instances: list[Instance]) -> None:
    atlas = instances[0]
    atlas.delete_did(SHARED, "d1")
    settle(instances)
    assert [Did(SHARED, "d1") in instance.catalogue() for instance in instances] == [False] * 3
    assert atlas.parked() == {}


def remove_what_cms_holds(instances: list[Instance]) -> None:
    """A rule of cms holds the dataset that atlas removes."""
    atlas, cms, _ = instances
    atlas.add_scope(SHARED)
    atlas.add_did(SHARED, "d1")
    settle(instances)
    cms.add_rule(SHARED, "d1")
    atlas.delete_did(SHARED, "d1")
    settle(instances)


def test_who_retracts_what_never_fitted_here_removes_nothing(instances: list[Instance]) -> None:
    """The local DID of that name is another one, and nothing holds it."""
    atlas, cms, _ = instances
    cms.bridge.share([])
    atlas.add_scope(SHARED)
    settle(instances)
    cms.add_did(SHARED, "d1")
    cms.add_did(SHARED, "d2")
    atlas.add_did(SHARED, "d1", DIDType.CONTAINER)
    settle(instances)
    assert "exists here as dataset" in cms.parked()[Did(SHARED, "d1")]
    atlas.delete_did(SHARED, "d1")
    settle(instances)
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.parked() == {}
    assert cms.query("SELECT name, did_type FROM dids WHERE scope = :scope", scope=SHARED) == [("d1", "D"), ("d2", "D")]
