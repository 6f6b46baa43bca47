"""What users of several instances do at the same time, not knowing of each other, has one outcome everywhere (DESIGN 3-6)."""

from __future__ import annotations

import pytest
from rucio.db.sqla.constants import DIDType, OpenDataDIDState
from sqlalchemy.exc import OperationalError

from nsync.catalogue.entries import DidEntry
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Identity
from nsync.namespace.ops import Assert, Retract
from nsync.rucio_bridge.materialise import Materialise
from tests.support.instances import Instance, everything, settle

SHARED = "atlas.shared"
PUBLIC, SUSPENDED = OpenDataDIDState.PUBLIC, OpenDataDIDState.SUSPENDED

CLOSED_RULE = "closed collections stay as they are (6.2)"
CYCLE_RULE = "containers hold no cycle (6.3)"


def edge(parent: str, child: str) -> Attachment:
    return Attachment(Did(SHARED, parent), Did(SHARED, child))


def content(instance: Instance, name: str, scope: str = SHARED) -> set[str]:
    """The names of what `instance`'s Rucio has in a collection."""
    return {n for (n,) in instance.query("SELECT child_name FROM contents WHERE scope = :s AND name = :n", s=scope, n=name)}


def contents_everywhere(instances: list[Instance], name: str) -> list[set[str]]:
    return [content(instance, name) for instance in instances]


def rules(instance: Instance, fact: object) -> list[str]:
    return [conflict.rule for conflict in instance.conflicts().get(fact, [])]  # type: ignore[call-overload]


def entry(instance: Instance, name: str) -> DidEntry:
    found = instance.catalogue()[Did(SHARED, name)]
    assert isinstance(found, DidEntry)
    return found


def is_open(instance: Instance, name: str) -> bool:
    ((found,),) = instance.query("SELECT is_open FROM dids WHERE scope = :s AND name = :n", s=SHARED, n=name)
    return bool(found)


def state(instance: Instance, name: str) -> str:
    return "".join(s for (s,) in instance.query("SELECT state FROM dids_opendata WHERE scope = :s AND name = :n", s=SHARED, n=name))


def add_dataset(instance: Instance, name: str, files: list[str]) -> None:
    if files:
        instance.add_files(SHARED, files)
    instance.add_did(SHARED, name)
    if files:
        instance.attach(SHARED, name, [(SHARED, f) for f in files])


# ---- attach and close


def test_an_attachment_that_the_close_had_not_seen_is_hidden_and_listed(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    cms.add_files(SHARED, ["f2"])
    settle(federation)
    atlas.set_open(SHARED, "d1", False)
    cms.attach(SHARED, "d1", [(SHARED, "f2")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1"}] * 3
    assert [rules(instance, edge("d1", "f2")) for instance in federation] == [[CLOSED_RULE]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_what_the_home_attaches_and_closes_again_shows(federation: list[Instance]) -> None:
    test_an_attachment_that_the_close_had_not_seen_is_hidden_and_listed(federation)
    atlas, cms, belle2 = federation
    atlas.set_open(SHARED, "d1", True)
    atlas.attach(SHARED, "d1", [(SHARED, "f2")])
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1", "f2"}] * 3
    assert [rules(instance, edge("d1", "f2")) for instance in federation] == [[]] * 3
    assert [i.query("SELECT bytes, length, is_open FROM dids WHERE name = 'd1'") for i in federation] == [[(20, 2, 0)]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_an_attachment_that_the_close_had_seen_stays(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    add_dataset(atlas, "d1", ["f1"])
    settle(federation)
    cms.add_files(SHARED, ["f2"])
    cms.attach(SHARED, "d1", [(SHARED, "f2")])
    settle(federation)
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1", "f2"}] * 3
    assert [is_open(instance, "d1") for instance in federation] == [False] * 3


def test_after_a_reopen_guests_attach_again(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    add_dataset(atlas, "d1", ["f1"])
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    atlas.set_open(SHARED, "d1", True)
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [True] * 3
    cms.add_files(SHARED, ["f2"])
    cms.attach(SHARED, "d1", [(SHARED, "f2")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1", "f2"}] * 3


def test_the_home_reopens_what_a_guest_closed(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    settle(federation)
    cms.set_open(SHARED, "d1", False)
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [False] * 3
    atlas.set_open(SHARED, "d1", True)
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [True] * 3
    belle2.add_files(SHARED, ["f2"])
    belle2.attach(SHARED, "d1", [(SHARED, "f2")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1", "f2"}] * 3


def test_what_the_closer_saw_through_a_third_instance_it_saw(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    settle(federation)
    cms.add_files(SHARED, ["f2"])
    cms.attach(SHARED, "d1", [(SHARED, "f2")])
    cms.work()
    belle2.fetch(cms)
    belle2.work()
    belle2.add_did("belle2", "anything")
    belle2.work()
    atlas.fetch(belle2)
    atlas.work()
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1", "f2"}] * 3


def test_a_reopen_is_ignored_while_the_data_are_public(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    atlas.publish_dataset(SHARED, "d1")
    settle(federation)
    atlas.set_open(SHARED, "d1", True)
    settle(federation)
    assert [entry(instance, "d1").closed for instance in federation] == [True] * 3
    assert [is_open(instance, "d1") for instance in federation] == [True, False, False]  # at atlas a drift, reported, not fought
    assert cms.rows() == belle2.rows()


def test_what_is_attached_to_reopened_open_data_shows_once_they_are_closed_again(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    atlas.publish_dataset(SHARED, "d1")
    atlas.add_files(SHARED, ["late"])
    settle(federation)
    before = content(cms, "d1")
    atlas.set_open(SHARED, "d1", True)
    settle(federation)
    atlas.attach(SHARED, "d1", [(SHARED, "late")])
    settle(federation)
    assert contents_everywhere([cms, belle2], "d1") == [before] * 2
    assert [rules(instance, edge("d1", "late")) for instance in federation] == [[CLOSED_RULE]] * 3
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    assert contents_everywhere(federation, "d1") == [before | {"late"}] * 3
    assert [instance.conflicts() for instance in federation] == [{}] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


# ---- add and remove


def test_of_an_attachment_added_and_removed_at_once_the_add_wins(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    add_dataset(atlas, "d1", [])
    atlas.add_files(SHARED, ["f1"])
    settle(federation)
    atlas.attach(SHARED, "d1", [(SHARED, "f1")])
    atlas.work()
    cms.attach(SHARED, "d1", [(SHARED, "f1")])
    cms.work()
    atlas.detach(SHARED, "d1", [(SHARED, "f1")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1"}] * 3
    atlas.detach(SHARED, "d1", [(SHARED, "f1")])  # now it knows of the other's
    settle(federation)
    assert contents_everywhere(federation, "d1") == [set()] * 3


def test_of_a_did_added_and_removed_at_once_the_add_wins(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    atlas.add_did(SHARED, "d1")
    atlas.work()
    cms.add_did(SHARED, "d1")
    cms.work()
    atlas.delete_did(SHARED, "d1")
    settle(federation)
    assert [instance.query("SELECT name FROM dids WHERE name = 'd1'") for instance in federation] == [[("d1",)]] * 3
    atlas.delete_did(SHARED, "d1")
    settle(federation)
    assert [instance.query("SELECT name FROM dids WHERE name = 'd1'") for instance in federation] == [[]] * 3


def test_what_was_detached_can_be_attached_again(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    add_dataset(atlas, "d1", ["f1"])
    settle(federation)
    for _ in range(2):
        atlas.detach(SHARED, "d1", [(SHARED, "f1")])
        settle(federation)
        assert contents_everywhere(federation, "d1") == [set()] * 3
        atlas.attach(SHARED, "d1", [(SHARED, "f1")])
        settle(federation)
        assert contents_everywhere(federation, "d1") == [{"f1"}] * 3
    assert cms.conflicts() == {}


def test_a_did_that_was_deleted_can_be_made_again(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    settle(federation)
    atlas.delete_did(SHARED, "d1")
    settle(federation)
    assert [instance.query("SELECT name FROM dids WHERE name = 'd1'") for instance in federation] == [[]] * 3
    atlas.add_did(SHARED, "d1")
    atlas.attach(SHARED, "d1", [(SHARED, "f1")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1"}] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_an_attachment_shows_when_its_child_arrives(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    cms.add_did("cms", "c1", DIDType.CONTAINER)
    settle(federation)
    cms.publish(Assert(Attachment(Did("cms", "c1"), Did("belle2", "d1")), True))
    settle(federation)
    assert content(atlas, "c1", "cms") == set()
    assert atlas.parked() == {}
    belle2.add_did("belle2", "d1")
    settle(federation)
    assert [content(instance, "c1", "cms") for instance in federation] == [{"d1"}] * 3


def test_a_file_that_went_with_its_last_replica_is_not_counted_anywhere(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    cms.add_files(SHARED, ["f2"])
    settle(federation)
    atlas.add_files(SHARED, ["f1"])
    atlas.add_did(SHARED, "d1")
    atlas.attach(SHARED, "d1", [(SHARED, "f1"), (SHARED, "f2")])
    atlas.set_open(SHARED, "d1", False)
    settle(federation)
    cms.delete_replicas(SHARED, ["f2"])  # Rucio removes the file and its attachment, and leaves the size of the dataset
    settle(federation)
    assert [i.query("SELECT bytes, length FROM dids WHERE name = 'd1'") for i in federation] == [[(10, 1)]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_the_attachment_of_a_dataset_has_no_size_as_rucios_own_has_none(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    atlas.publish_dataset("atlas", "d1")
    atlas.add_did("atlas", "c1", DIDType.CONTAINER)
    atlas.attach("atlas", "c1", [("atlas", "d1")])
    settle(federation)
    assert [instance.query("SELECT bytes FROM contents WHERE name = 'c1'") for instance in federation] == [[(None,)]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


# ---- values


def doi_of(instance: Instance, name: str) -> list[str]:
    return [doi for (doi,) in instance.query("SELECT doi FROM dids_opendata_doi WHERE scope = :s AND name = :n", s=SHARED, n=name)]


def test_of_two_values_said_at_once_the_newer_shows(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    for name in ("d1", "d2", "d3"):
        atlas.publish_dataset(SHARED, name)
    settle(federation)
    cms.now_ms = atlas.now_ms + 30_000
    atlas.set_open_data(SHARED, "d1", doi="10.5072/ATLAS.1")
    atlas.work()
    cms.set_open_data(SHARED, "d1", doi="10.5072/ATLAS.2")
    cms.work()
    settle(federation)
    assert [doi_of(instance, "d1") for instance in federation] == [["10.5072/ATLAS.2"]] * 3


def test_what_users_did_is_said_before_what_came_in_is_written(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    atlas.publish_dataset(SHARED, "d1")
    settle(federation)
    cms.now_ms = atlas.now_ms + 30_000
    atlas.set_open_data(SHARED, "d1", doi="10.5072/ATLAS.1")
    atlas.work()
    cms.fetch(atlas)
    cms.set_open_data(SHARED, "d1", doi="10.5072/ATLAS.2")
    cms.work()
    settle(federation)
    assert [doi_of(instance, "d1") for instance in federation] == [["10.5072/ATLAS.2"]] * 3


# ---- one transaction


def test_a_changeset_whose_rows_fail_is_not_applied_either(federation: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    atlas.work()
    cms.fetch(atlas)
    before = everything(cms)

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(Materialise, "_write", fail)
        cms.work()
    assert everything(cms) == before
    settle(federation)
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_what_the_bridge_writes_is_not_captured(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    atlas.publish_dataset("atlas", "d1")
    atlas.work()
    cms.fetch(atlas)
    cms.bridge.work(cms.now_ms)
    assert content(cms, "d1", "atlas") != set()
    for instance in (atlas, cms):
        assert instance.query("SELECT * FROM nsync_outbox") == []


# ---- guests and the home


def test_a_guests_retract_silences_only_its_own(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1"])
    cms.add_files(SHARED, ["f2"])
    settle(federation)
    cms.attach(SHARED, "d1", [(SHARED, "f2")])
    settle(federation)
    cms.detach(SHARED, "d1", [(SHARED, "f1"), (SHARED, "f2")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1"}, set(), {"f1"}]  # its own f1 is a drift of cms
    assert edge("d1", "f1") in cms.catalogue()
    cms.publish(Retract(edge("d1", "f1")))
    belle2.delete_did(SHARED, "d1")
    settle(federation)
    assert content(atlas, "d1") == {"f1"}


def test_a_guests_retract_waits_for_the_home(federation: list[Instance]) -> None:
    _atlas, cms, belle2 = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    cms.detach(SHARED, "d1", [(SHARED, "f1")])
    settle([cms, belle2])
    assert content(belle2, "d1") == {"f1"}
    settle(federation)
    assert contents_everywhere(federation, "d1") == [set()] * 3


def test_the_homes_retract_silences_everyone(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    atlas.detach(SHARED, "d1", [(SHARED, "f1")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [set()] * 3


def test_a_guests_close_takes_effect_once_the_home_acknowledged_it(federation: list[Instance]) -> None:
    _atlas, cms, belle2 = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    cms.set_open(SHARED, "d1", False)
    settle([cms, belle2])
    assert is_open(belle2, "d1") and not is_open(cms, "d1")
    assert [entry(instance, "d1").closed for instance in (cms, belle2)] == [False] * 2
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [False] * 3


def test_a_guests_publication_takes_effect_once_the_home_acknowledged_it(federation: list[Instance]) -> None:
    _atlas, cms, belle2 = federation
    cms.publish_dataset(SHARED, "d1")
    settle([cms, belle2])
    assert state(belle2, "d1") == ""
    settle(federation)
    assert [state(instance, "d1") for instance in federation] == ["P"] * 3


def test_what_a_guest_closed_stays_closed_at_the_guest_while_the_home_is_silent(federation: list[Instance]) -> None:
    _, cms, belle2 = federation
    cms.publish_dataset(SHARED, "d1")
    settle([cms, belle2])
    assert not is_open(cms, "d1") and state(cms, "d1") == "P"
    belle2.add_files(SHARED, ["f9"])
    belle2.attach(SHARED, "d1", [(SHARED, "f9")])
    settle([cms, belle2])
    assert not is_open(cms, "d1") and state(cms, "d1") == "P"
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [False] * 3
    assert "f9" not in content(cms, "d1")


def test_what_a_guest_closed_has_its_size_whatever_came_before_the_home_answered(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    add_dataset(atlas, "d1", ["f1", "f2"])
    atlas.work()
    add_dataset(cms, "d1", ["f2", "f3"])
    cms.set_open(SHARED, "d1", False)
    cms.work()
    cms.fetch(atlas)
    cms.work()
    atlas.detach(SHARED, "d1", [(SHARED, "f1")])
    atlas.work()
    cms.fetch(atlas)
    cms.work()
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f2", "f3"}] * 3
    assert [i.query("SELECT bytes, length, is_open FROM dids WHERE name = 'd1'") for i in federation] == [[(20, 2, 0)]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_a_guests_suspension_takes_effect_at_once(federation: list[Instance]) -> None:
    _atlas, cms, belle2 = federation
    cms.publish_dataset(SHARED, "d1")
    settle(federation)
    cms.set_open_data(SHARED, "d1", state=SUSPENDED)
    settle([cms, belle2])
    assert state(belle2, "d1") == "S"
    settle(federation)
    assert [state(instance, "d1") for instance in federation] == ["S"] * 3


def test_suspended_wins_over_a_concurrent_publication(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    atlas.publish_dataset(SHARED, "d1")
    settle(federation)
    atlas.set_open_data(SHARED, "d1", state=SUSPENDED)
    settle(federation)
    atlas.set_open_data(SHARED, "d1", state=PUBLIC)
    cms.set_open_data(SHARED, "d1", state=PUBLIC)
    cms.work()
    cms.set_open_data(SHARED, "d1", state=SUSPENDED)
    settle(federation)
    assert [state(instance, "d1") for instance in federation] == ["S"] * 3


def test_a_guest_takes_back_a_close_that_the_home_has_not_acknowledged(federation: list[Instance]) -> None:
    _atlas, cms, _ = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    cms.set_open(SHARED, "d1", False)
    cms.work()
    cms.set_open(SHARED, "d1", True)
    settle(federation)
    assert [is_open(instance, "d1") for instance in federation] == [True] * 3


def test_a_guest_takes_back_a_retract_that_the_home_has_not_acknowledged(federation: list[Instance]) -> None:
    _atlas, cms, _ = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    cms.detach(SHARED, "d1", [(SHARED, "f1")])
    cms.work()
    cms.attach(SHARED, "d1", [(SHARED, "f1")])
    settle(federation)
    assert contents_everywhere(federation, "d1") == [{"f1"}] * 3


def test_a_guest_that_says_the_same_twice_publishes_once(federation: list[Instance]) -> None:
    _atlas, cms, _ = federation
    add_dataset(cms, "d1", ["f1"])
    settle(federation)
    cms.set_open(SHARED, "d1", False)
    cms.work()
    cms.set_open(SHARED, "d1", True)
    cms.set_open(SHARED, "d1", False)
    assert cms.work() == 0


def test_a_stranger_in_a_scope_changes_nothing(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    cms.add_did("cms", "d1")
    settle(federation)
    belle2.publish(Assert(Did("cms", "d2"), Identity(keys.DATASET)), Retract(Did("cms", "d1")))
    settle(federation)
    for instance in federation:
        assert instance.query("SELECT name FROM dids WHERE scope = 'cms'") == [("d1",)]
        assert Did("cms", "d2") not in instance.catalogue()
    assert atlas.rows() == cms.rows() == belle2.rows()


# ---- cycles


def test_of_a_cycle_the_younger_attachment_hides_everywhere(federation: list[Instance]) -> None:
    atlas, cms, belle2 = federation
    for name in ("c1", "c2"):
        atlas.add_did(SHARED, name, DIDType.CONTAINER)
    settle(federation)
    cms.attach(SHARED, "c1", [(SHARED, "c2")])
    cms.work()
    belle2.now_ms = cms.now_ms + 5000
    belle2.attach(SHARED, "c2", [(SHARED, "c1")])
    settle(federation)
    assert contents_everywhere(federation, "c1") == [{"c2"}] * 3
    assert contents_everywhere(federation, "c2") == [set()] * 3
    assert [rules(instance, edge("c2", "c1")) for instance in federation] == [[CYCLE_RULE]] * 3
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_the_hidden_attachment_of_a_cycle_shows_when_the_cycle_is_gone(federation: list[Instance]) -> None:
    test_of_a_cycle_the_younger_attachment_hides_everywhere(federation)
    atlas, *_ = federation
    atlas.detach(SHARED, "c1", [(SHARED, "c2")])
    settle(federation)
    assert contents_everywhere(federation, "c1") == [set()] * 3
    assert contents_everywhere(federation, "c2") == [{"c1"}] * 3
    assert [instance.conflicts() for instance in federation] == [{}] * 3


def test_a_silent_home_still_decides_between_two_guests_claims(federation: list[Instance]) -> None:
    """It acknowledges what only its log can put in order; until then a stamp would decide, and the winner could change."""
    atlas, cms, belle2 = federation
    f1 = Did(SHARED, "f1")
    cms.add_files(SHARED, ["f1"], 1, "00000001")
    belle2.add_files(SHARED, ["f1"], 2, "00000002")
    belle2.work()
    cms.work()
    before = atlas.segments(atlas.bridge.me.author)
    atlas.fetch(cms)
    atlas.work()
    atlas.fetch(belle2)
    atlas.work()
    assert atlas.segments(atlas.bridge.me.author) > before
    settle(federation)
    assert len({instance.catalogue()[f1].identity for instance in federation}) == 1
    count = atlas.query("SELECT count(*) FROM nsync_segment")
    settle(federation)
    assert atlas.query("SELECT count(*) FROM nsync_segment") == count, "once"
