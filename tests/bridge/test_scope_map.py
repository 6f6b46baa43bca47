"""A foreign scope whose name is private here is shown under another name, and the private one stays what it is (R7.6)."""

from __future__ import annotations

import pytest
from rucio.common.types import InternalScope
from rucio.core import replica as core_replica
from rucio.core.scope import add_scope
from rucio.db.sqla.constants import OpenDataDIDState

from nsync.errors import ConfigError
from nsync.namespace.keys import Did
from tests.bridge.test_drift import diff, mend
from tests.support.instances import ROOT, Instance, everything, settle

FAR = "far-cms"
PRIVATE = "SELECT name, did_type, bytes, adler32, account, is_open, updated_at FROM dids WHERE scope = 'cms' ORDER BY name"


def tell_the_story(here: Instance, home: Instance) -> None:
    """`home` is cms, and `here` has a scope `cms` of its own, with a file and a dataset of the same names as the shared ones.

    On PostgreSQL there may be tables that SQLite has not."""
    here.add_scope("cms")
    here.add_files("cms", ["f1", "mine"], 7, "00000007")
    here.add_did("cms", "d1")
    here.work()
    private = here.query(PRIVATE)
    home.add_scope("cms")
    home.add_files("cms", ["f1", "f2", "f3"])
    home.add_did("cms", "d1")
    home.attach("cms", "d1", [("cms", "f1"), ("cms", "f2")])
    settle([home, here])
    assert "[nsync] scope_map = cms:OTHER" in here.parked()[Did("cms", "d1")]
    here.bridge.map_scopes({"cms": FAR})
    assert here.bridge.retry_parked(here.now_ms).released == 1
    assert here.parked() == {} and here.names(FAR) == {"f1", "f2", "f3", "d1"}
    assert here.query("SELECT account FROM scopes WHERE scope = :far", far=FAR) == [("nsync-cms",)]
    here.work()
    assert here.rows().items() >= home.rows().items()
    use_it(here)
    change_it(here, home)
    assert here.query(PRIVATE) == private
    here.add_files("cms", ["f2"], 7, "00000007")  # the private scope goes on, with names that the shared one has
    here.set_open("cms", "d1", False)
    assert here.work() == 0 and here.query("SELECT count(*) FROM nsync_outbox") == [(0,)]
    assert here.rows().items() >= home.rows().items()


def use_it(here: Instance) -> None:
    """A local rule, which Rucio finds under the local name; and Rucio finds the file where its home has it."""
    here.add_rule(FAR, "d1")
    with here.session() as session:
        found = list(core_replica.list_replicas([{"scope": InternalScope(FAR), "name": "f1"}], session=session))
        assert [one["scope"].external for one in found] == [FAR]
        assert all("/cms/" in pfn for pfns in found[0]["rses"].values() for pfn in pfns) and any(found[0]["rses"].values())
    here.work()


def change_it(here: Instance, home: Instance) -> None:
    home.attach("cms", "d1", [("cms", "f3")])
    home.set_open("cms", "d1", False)
    home.add_open_data("cms", "d1")
    home.set_open_data("cms", "d1", doi="10.5072/CMS.1")
    home.set_open_data("cms", "d1", state=OpenDataDIDState.PUBLIC)
    settle([home, here])
    assert here.query("SELECT state, is_open FROM dids_opendata o JOIN dids d USING (scope, name) WHERE scope = :far", far=FAR) in (
        [("P", 0)],
        [("P", False)],
    )
    assert here.rows().items() >= home.rows().items()
    home.add_files("cms", ["f4"])
    settle([home, here])
    assert "f4" in here.names(FAR)
    home.delete_replicas("cms", ["f4"])
    settle([home, here])
    assert "f4" not in here.names(FAR)
    assert here.rows().items() >= home.rows().items()


def test_a_mapped_scope_is_shown_and_the_private_one_of_its_name_is_left_alone(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    tell_the_story(atlas, cms)


def test_a_second_cycle_writes_nothing(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    tell_the_story(atlas, cms)
    atlas.work()
    before = everything(atlas)
    atlas.bridge.map_scopes({"cms": FAR})
    atlas.bridge.retry_parked(atlas.now_ms)
    assert atlas.work() == 0 and everything(atlas) == before


def test_a_scope_whose_name_this_rucio_does_not_take_can_be_mapped(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    with cms.session() as session:
        add_scope(InternalScope("cms.a very long one, not allowed"), ROOT, session=session)
    cms.bridge.share(["cms.a very long one, not allowed"])
    cms.add_files("cms.a very long one, not allowed", ["f1"])
    settle([cms, atlas])
    assert "scope_map = cms.a very long one" in atlas.parked()[Did("cms.a very long one, not allowed", "f1")]
    atlas.bridge.map_scopes({"cms.a very long one, not allowed": "far"})
    atlas.bridge.retry_parked(atlas.now_ms)
    assert atlas.parked() == {} and atlas.names("far") == {"f1"}


def test_the_map_changes_only_where_no_rows_stand_yet(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    cms.add_scope("cms")
    cms.add_files("cms", ["f1"])
    settle([cms, atlas])
    with pytest.raises(ConfigError, match="stand here as cms, and cannot be renamed; take cms out of it"):
        atlas.bridge.map_scopes({"cms": FAR})
    assert atlas.names("cms") == {"f1"}
    atlas.add_scope("taken")
    with pytest.raises(ConfigError, match="scope taken belongs to account root here; choose a name that no scope has"):
        atlas.bridge.map_scopes({"cms.new": "taken"})
    atlas.bridge.map_scopes({"cms.new": "far-new"})
    cms.bridge.share(["cms", "cms.new"])
    cms.add_scope("cms.new")
    cms.add_files("cms.new", ["f2"])
    settle([cms, atlas])
    assert atlas.names("far-new") == {"f2"}
    with pytest.raises(ConfigError, match=r"stand here as far-new, and cannot be renamed; write cms\.new:far-new there"):
        atlas.bridge.map_scopes({})


def test_a_guest_says_nothing_about_a_mapped_scope(instances: list[Instance]) -> None:
    """cms may write in atlas.shared."""
    atlas, cms, _ = instances
    cms.bridge.share([])
    cms.bridge.map_scopes({"atlas.shared": "far"})
    atlas.add_scope("atlas.shared")
    atlas.publish_dataset("atlas.shared", "d1", doi="10.5072/ATLAS.1")
    settle([atlas, cms])
    cms.set_open_data("far", "d1", state=OpenDataDIDState.SUSPENDED)
    cms.set_open_data("far", "d1", doi="10.5072/CMS.1")
    assert cms.query("SELECT state FROM dids_opendata WHERE scope = 'far'") == [("S",)]
    settle([atlas, cms])
    assert atlas.query("SELECT state FROM dids_opendata") == [("P",)] and cms.segments(cms.bridge.me.author) == 0


def test_a_mapped_scope_does_not_drift_and_what_does_is_mended(instances: list[Instance]) -> None:
    """A private scope of the name is nothing to compare."""
    atlas, cms, _ = instances
    tell_the_story(atlas, cms)
    assert diff(atlas).differences == []
    atlas.edit("UPDATE dids SET adler32 = '00000009' WHERE scope = :far AND name = 'f1'", far=FAR)
    assert {fact for fact, _ in diff(atlas).drifts} == {"cms:f1"}
    mend(atlas)
    assert diff(atlas).differences == [] and atlas.rows() == cms.rows()


def test_what_users_do_in_a_private_scope_of_the_name_is_no_drift(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    tell_the_story(atlas, cms)
    atlas.add_files("cms", ["f3"], 7, "00000007")
    assert diff(atlas).differences == []
