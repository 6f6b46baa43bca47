"""The invariants that a merge must preserve, on real Rucio databases of either kind, each by its number.

Any history keeps them too (test_state_machine); here each has the shortest story that shows it.
"""

from __future__ import annotations

from typing import Any

from rucio.common.types import InternalScope
from rucio.core import did as core_did
from rucio.core import opendata
from rucio.core.rse import get_rse_id
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDType, OpenDataDIDState
from sqlalchemy import update

from nsync.catalogue.entries import DidEntry
from nsync.log.stored import Head
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Identity, Replica, Rse
from nsync.namespace.ops import Assert, Retract
from tests.bridge.test_conflicts import DOI_RULE, IDENTITY_RULE
from tests.bridge.test_restored import adopt, amended
from tests.support.deeds import Act, abacus, conveyor, judge_evaluator, reaper, undertaker
from tests.support.federation import charter_document
from tests.support.instances import Instance, everything, settle
from tests.support.promises import check_counters, check_no_orphans_and_no_broken_rows, check_sizes_of_closed_collections
from tests.support.story import Story, own

SHARED = "atlas.shared"
PUBLIC, SUSPENDED = OpenDataDIDState.PUBLIC, OpenDataDIDState.SUSPENDED
REGISTERED = "SELECT name, did_type, bytes, adler32 FROM dids WHERE scope = :scope ORDER BY name"


def rules(instance: Instance, fact: Any) -> list[str]:
    return [conflict.rule for conflict in instance.conflicts().get(fact, [])]


def same_rows(instances: list[Instance]) -> bool:
    first, *others = (instance.rows() for instance in instances)
    return all(rows == first for rows in others)


def foreign_replicas(instance: Instance) -> list[tuple[Any, ...]]:
    return instance.query(
        "SELECT r.scope, r.name, s.rse, r.bytes, r.adler32, r.state, r.tombstone, s.availability_write, s.availability_delete "
        "FROM replicas r JOIN rses s ON s.id = r.rse_id JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin' ORDER BY 1, 2, 3"
    )


def a_dataset(instance: Instance, scope: str, name: str = "d1", files: int = 2) -> None:
    """Open, with files f0, f1, …"""
    instance.add_files(scope, [f"f{i}" for i in range(files)])
    instance.add_did(scope, name)
    instance.attach(scope, name, [(scope, f"f{i}") for i in range(files)])


def test_invariant_01_a_name_has_one_type(either: list[Instance]) -> None:
    """(scope, name) has one immutable type; on concurrent different types one deterministic winner, loser quarantined."""
    atlas, cms, belle2 = either
    x, y = Did(SHARED, "x"), Did(SHARED, "y")
    belle2.add_did(SHARED, "x", DIDType.CONTAINER)
    belle2.add_did(SHARED, "y", DIDType.CONTAINER)
    belle2.attach(SHARED, "x", [(SHARED, "y")])
    belle2.work()
    cms.add_did(SHARED, "x")
    settle([atlas, cms])
    atlas.add_did("atlas", "anything")
    settle(either)
    for instance in either:
        entry = instance.catalogue()[x]
        assert isinstance(entry, DidEntry) and entry.identity.type == "D"
        assert rules(instance, x) == [IDENTITY_RULE] and rules(instance, Attachment(x, y)) == ["types (6.1)"]
        assert Attachment(x, y) not in instance.catalogue()
    assert belle2.query("SELECT did_type FROM dids WHERE name = 'x'") == [("C",)]
    assert "exists here as container" in belle2.parked()[x]
    assert atlas.children(SHARED, "x") == cms.children(SHARED, "x") == set()


def test_invariant_02_the_bytes_of_a_file_are_one_for_ever(either: list[Instance]) -> None:
    """File identity (bytes, adler32, md5) immutable once seen; mismatch = conflict, never overwrite."""
    atlas, cms, belle2 = either
    cms.add_files(SHARED, ["f1"], 1, "00000001")
    cms.work()
    belle2.add_files(SHARED, ["f1"], 2, "00000002")
    belle2.work()
    atlas.fetch(cms)
    atlas.work()
    atlas.add_did("atlas", "anything")  # by which the home's log has cms's in its past, and not belle2's
    atlas.work()
    settle(either)
    f1 = Did(SHARED, "f1")
    assert [rules(instance, f1) for instance in either] == [[IDENTITY_RULE]] * 3
    assert [i.query(REGISTERED, scope=SHARED) for i in (atlas, cms)] == [[("f1", "F", 1, "00000001")]] * 2
    assert belle2.query(REGISTERED, scope=SHARED) == [("f1", "F", 2, "00000002")], "and its own replica still fits its file"
    assert {fact for fact in atlas.catalogue() if isinstance(fact, Replica)} == {Replica(f1, Rse("cms", "DISK"))}


def test_invariant_02_a_name_that_was_removed_keeps_its_bytes(either: list[Instance]) -> None:
    """The same after removal: who registers other bytes under the name keeps them to themselves."""
    atlas, cms, belle2 = either
    atlas.add_files("atlas", ["f1"], 1, "00000001")
    settle(either)
    atlas.delete_replicas("atlas", ["f1"])
    settle(either)
    assert [instance.names("atlas") for instance in either] == [set()] * 3
    atlas.add_files("atlas", ["f1"], 2, "00000002")
    settle(either)
    assert [rules(instance, Did("atlas", "f1")) for instance in either] == [[IDENTITY_RULE]] * 3
    assert atlas.query(REGISTERED, scope="atlas") == [("f1", "F", 2, "00000002")]
    assert all(("f1", "F", 2, "00000002") not in instance.query(REGISTERED, scope="atlas") for instance in (cms, belle2))


def test_invariant_03_what_was_deleted_comes_back_by_no_replay(either: list[Instance]) -> None:
    """Deletion tombstones permanent: what is removed stays removed, whatever arrives late or again."""
    atlas, cms, belle2 = either
    a_dataset(atlas, "atlas")
    settle([atlas, cms])
    first = atlas.frames()
    atlas.detach("atlas", "d1", [("atlas", "f0"), ("atlas", "f1")])
    atlas.delete_did("atlas", "d1")
    atlas.delete_replicas("atlas", ["f0", "f1"])
    settle([atlas, cms])
    assert cms.names("atlas") == set()
    belle2.bridge.receive(first, "cms")
    belle2.work()
    settle(either)
    for instance in either:
        instance.bridge.receive(first, "cms")
        instance.work()
    assert [instance.names("atlas") for instance in either] == [set()] * 3
    assert [foreign_replicas(instance) for instance in either] == [[]] * 3


def test_invariant_04_contents_are_whole_legal_and_acyclic(either: list[Instance]) -> None:
    """contents: parent and child exist, parent type/child type legal, acyclic across instances; dataset children only files; no mixed
    container."""
    atlas, cms, belle2 = either
    for name in ("c1", "c2", "c3", "c"):
        atlas.add_did(SHARED, name, DIDType.CONTAINER)
    settle(either)
    for instance, parent, child in ((atlas, "c1", "c2"), (cms, "c2", "c3"), (belle2, "c3", "c1")):
        instance.attach(SHARED, parent, [(SHARED, child)])
        instance.work()
    cms.add_did(SHARED, "d")
    cms.attach(SHARED, "c", [(SHARED, "d")])
    belle2.add_did(SHARED, "e", DIDType.CONTAINER)
    belle2.attach(SHARED, "c", [(SHARED, "e")])
    settle(either)
    edges = [instance.query("SELECT name, child_name FROM contents ORDER BY 1, 2") for instance in either]
    assert edges[0] == edges[1] == edges[2]
    cycle = {("c1", "c2"), ("c2", "c3"), ("c3", "c1")}
    assert len(cycle & set(edges[0])) == 2, "one of three is hidden, and the same everywhere"
    assert len([edge for edge in edges[0] if edge[0] == "c"]) == 1
    assert same_rows(either)


def test_invariant_04_a_file_holds_nothing_and_what_lacks_an_end_waits(either: list[Instance]) -> None:
    """The same against statements that no Rucio would make."""
    atlas, cms, belle2 = either
    cms.add_did("cms", "d1")
    cms.add_files("cms", ["f1", "f2"])
    settle(either)
    d1, f1, f2, nothing = (Did("cms", name) for name in ("d1", "f1", "f2", "nothing"))
    wrong = [Attachment(f1, f2), Attachment(d1, d1), Attachment(d1, nothing), Attachment(nothing, f1)]
    cms.publish(*(Assert(edge, True) for edge in wrong))
    settle(either)
    for instance in either:
        assert instance.query("SELECT * FROM contents") == []
    assert same_rows(either) and atlas.parked() == belle2.parked() == {}


def test_invariant_05_nothing_is_attached_after_a_close(either: list[Instance]) -> None:
    """Closed: no attach after close in causal order; concurrent attach/close: decided once, identical everywhere."""
    atlas, cms, belle2 = either
    a_dataset(atlas, SHARED)
    cms.add_files(SHARED, ["seen", "unseen"])
    settle(either)
    cms.attach(SHARED, "d1", [(SHARED, "seen")])
    settle([atlas, cms])
    atlas.set_open(SHARED, "d1", False)
    cms.attach(SHARED, "d1", [(SHARED, "unseen")])
    settle(either)
    assert [instance.children(SHARED, "d1") for instance in either] == [{"f0", "f1", "seen"}] * 3
    assert [rules(i, Attachment(Did(SHARED, "d1"), Did(SHARED, "unseen"))) for i in either] == [
        ["closed collections stay as they are (6.2)"]
    ] * 3
    assert same_rows(either)
    assert belle2.query("SELECT length, bytes FROM dids WHERE name = 'd1'") == [(3, 30)]


def test_invariant_06_sizes_of_closed_collections_are_sums_of_their_content(either: list[Instance]) -> None:
    """bytes/length/events of closed collections = sum over merged contents (recompute here, do not copy)."""
    _atlas, cms, _belle2 = either
    a_dataset(cms, "cms", files=3)
    cms.add_did("cms", "c1", DIDType.CONTAINER)
    cms.attach("cms", "c1", [("cms", "d1")])
    with cms.session() as session:
        for i in range(3):
            core_did.set_metadata(InternalScope("cms"), f"f{i}", "events", 10 + i, session=session)
    for name in ("d1", "c1"):
        cms.set_open("cms", name, False)
    settle(either)
    query = "SELECT name, length, bytes, events FROM dids WHERE did_type <> 'F' ORDER BY name"
    whole = [("c1", 3, 30, 33), ("d1", 3, 30, 33)]
    assert [instance.query(query) for instance in either] == [whole] * 3
    cms.delete_replicas("cms", ["f2"])  # Rucio leaves d1's sizes as they were, and takes c1 along
    settle(either)
    assert [instance.query(query) for instance in either] == [[("d1", 2, 20, 21)]] * 3
    check_sizes_of_closed_collections(Story(either))


def test_invariant_06_other_metadata_leave_the_events_of_a_collection(either: list[Instance]) -> None:
    """The same when the metadata of the collection change."""
    _, cms, _ = either
    a_dataset(cms, "cms", files=2)
    with cms.session() as session:
        core_did.set_metadata(InternalScope("cms"), "f0", "events", 7, session=session)
    cms.set_open("cms", "d1", False)
    settle(either)
    with cms.session() as session:
        core_did.set_metadata(InternalScope("cms"), "d1", "campaign", "mc23", session=session)
    settle(either)
    assert [instance.query("SELECT campaign, events FROM dids WHERE name = 'd1'") for instance in either] == [[("mc23", 7)]] * 3


def test_invariant_07_public_data_are_closed_and_suspension_wins(either: list[Instance]) -> None:
    """PUBLIC opendata => not open; SUSPENDED beats PUBLIC when concurrent; never DRAFT again."""
    atlas, cms, _ = either
    atlas.publish_dataset(SHARED, "d1")
    settle(either)
    state = "SELECT o.state, d.is_open FROM dids_opendata o JOIN dids d ON d.scope = o.scope AND d.name = o.name WHERE d.name = 'd1'"
    assert [instance.query(state) for instance in either] == [[("P", False)]] * 3
    atlas.set_open(SHARED, "d1", True)  # Rucio lets an admin do so
    settle(either)
    assert [instance.query(state) for instance in either[1:]] == [[("P", False)]] * 2
    atlas.set_open(SHARED, "d1", False)
    settle(either)
    cms.set_open_data(SHARED, "d1", state=SUSPENDED)
    settle([cms, atlas])
    atlas.set_open_data(SHARED, "d1", state=PUBLIC)
    atlas.work()
    cms.publish(Assert(keys.Attribute(Did(SHARED, "d1"), "opendata"), "SUSPENDED"))
    settle(either)
    assert [instance.query(state) for instance in either] == [[("S", False)]] * 3
    with atlas.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE dids_opendata SET state = 'D'")
    settle(either)
    assert [instance.query(state) for instance in either[1:]] == [[("S", False)]] * 2


def test_invariant_07_a_doi_and_a_record_name_one_did(either: list[Instance]) -> None:
    """DOI and record_id unique."""
    atlas, cms, belle2 = either
    for instance, name in ((belle2, "late"), (cms, "own")):
        instance.publish_dataset(instance.name, name, doi="10.5072/CMS.1")
        with instance.session() as session:
            opendata.update_opendata_did(scope=InternalScope(instance.name), name=name, record_id=7, session=session)
        instance.work()
    settle(either)
    assert [instance.query("SELECT name FROM dids_opendata_doi") for instance in (atlas, cms)] == [[("own",)]] * 2
    assert [len(instance.query("SELECT name FROM dids_opendata_record")) for instance in either] == [1] * 3
    assert [len(rules(i, Did("belle2", "late")) + rules(i, Did("cms", "own"))) for i in either] == [2] * 3
    assert [rules(instance, Did("belle2", "late")).count(DOI_RULE) for instance in either] == [1] * 3


def test_invariant_07_who_bears_a_record_here_is_named(either: list[Instance]) -> None:
    """The same where a local DID bears the number: what waits for it says so."""
    _, cms, belle2 = either
    for instance, name in ((belle2, "late"), (cms, "own")):
        instance.publish_dataset(instance.name, name)
        with instance.session() as session:
            opendata.update_opendata_did(scope=InternalScope(instance.name), name=name, record_id=7, session=session)
        instance.work()
    settle(either)
    reasons = [reason for one in (cms, belle2) for reason in one.parked().values() if "waits for" not in reason]
    assert reasons and all("record" in reason and "Rucio refused" not in reason for reason in reasons)


def test_invariant_08_foreign_replicas_are_read_only(either: list[Instance]) -> None:
    """Every AVAILABLE foreign replica has tombstone NULL, bytes/checksums equal to its DID, RSE read-only."""
    atlas, cms, _ = either
    a_dataset(cms, "cms")
    settle(either)
    before = foreign_replicas(atlas)
    assert before == [("cms", f"f{i}", "CMS_DISK", 10, "00000001", "A", None, False, False) for i in range(2)]
    for daemon in (abacus, reaper, undertaker, judge_evaluator):
        daemon(atlas)
    settle(either)
    assert foreign_replicas(atlas) == before
    with atlas.session() as session:
        rse_id = get_rse_id("CMS_DISK", session=session)
        doors = session.execute(models.RSEProtocol.__table__.select()).all()
    its = [door for door in doors if door.rse_id == rse_id]
    assert its and not any(d.write_lan or d.write_wan or d.delete_lan or d.delete_wan for d in its)


def with_a_rule(either: list[Instance]) -> str:
    """belle2 wants copies of cms's dataset d1, which have arrived."""
    _, cms, belle2 = either
    a_dataset(cms, "cms")
    settle(either)
    rule = belle2.add_rule("cms", "d1")
    conveyor(belle2)
    settle(either)
    return rule


def test_invariant_09_locks_are_counted(either: list[Instance]) -> None:
    """lock_cnt = count(locks)."""
    _, cms, belle2 = either
    with_a_rule(either)
    cms.add_files("cms", ["f9"])
    cms.attach("cms", "d1", [("cms", "f9")])
    cms.detach("cms", "d1", [("cms", "f0")])
    settle(either)
    judge_evaluator(belle2)
    settle(either)
    check_no_orphans_and_no_broken_rows(Story(either))
    locked = belle2.query("SELECT name FROM replicas WHERE lock_cnt = 1 ORDER BY name")
    assert locked == [("f1",), ("f9",)], "the judge let one go and took the new one"


def test_invariant_10_what_is_local_is_untouched(either: list[Instance]) -> None:
    """Local rules/locks/requests/expiry/quota untouched."""
    atlas, cms, belle2 = either
    with_a_rule(either)
    with belle2.engine.begin() as connection:
        connection.execute(update(models.DataIdentifier.__table__).values(expired_at=models.DataIdentifier.__table__.c.created_at))
    belle2.work()
    before = own(belle2)
    assert before["rules"] and before["locks"] and before["expiry"]
    cms.detach("cms", "d1", [("cms", "f0")])
    cms.set_open("cms", "d1", False)
    cms.delete_replicas("cms", ["f1"])
    settle(either)
    after = own(belle2)
    there = before["expiry"].keys() & after["expiry"].keys()
    assert {**after, "expiry": None} == {**before, "expiry": None}
    assert there and all(after["expiry"][did] == before["expiry"][did] for did in there)
    assert own(atlas)["rules"] == frozenset()


def test_invariant_11_what_is_held_here_stays_when_its_last_foreign_replica_goes(either: list[Instance]) -> None:
    """Foreign removal of the last known replica: keep the (replica-less) DID row while any local lock/rule/replica/attachment references
    it; do not let the core cascade decide."""
    atlas, cms, belle2 = either
    a_dataset(cms, "cms", files=3)
    settle(either)
    belle2.add_did("belle2.private", "mine")
    belle2.attach("belle2.private", "mine", [("cms", "f0")])
    belle2.add_rule("cms", "f1")
    settle(either)
    cms.detach("cms", "d1", [("cms", f"f{i}") for i in range(3)])
    cms.delete_replicas("cms", ["f0", "f1", "f2"])
    settle(either)
    assert cms.names("cms") == atlas.names("cms") == {"d1"}
    assert belle2.names("cms") == {"d1", "f0", "f1"}, "f2 is held by nobody here"
    assert belle2.children("belle2.private", "mine") == {"f0"}
    assert belle2.query("SELECT name FROM locks") == [("f1",)] and foreign_replicas(belle2) == []
    assert {fact.name for fact in belle2.parked() if isinstance(fact, Did)} >= {"f0", "f1"}


def test_invariant_12_counters_receive_each_change_once(either: list[Instance]) -> None:
    """Counters receive each delta once."""
    atlas, cms, belle2 = either
    story = Story(either)
    for step in range(3):
        story.act(Act("cms", "files", Did("cms", f"f{step}"), step + 1))
        settle(either)
        atlas.bridge.receive(cms.frames(), "cms")
        atlas.work()
        story.run("belle2", "abacus")
    story.act(Act("cms", "unreplicate", Did("cms", "f1")))
    settle(either)
    belle2.bridge.receive(cms.frames(), "cms")
    belle2.work()
    check_counters(story)
    used = "SELECT g.files, g.used FROM rse_usage g JOIN rses s ON s.id = g.rse_id WHERE s.rse = 'CMS_DISK' AND g.source = 'rucio'"
    for instance in (atlas, belle2):
        abacus(instance)
        assert instance.query(used) == [(2, 4)]


def test_invariant_13_rights_are_judged_by_causal_position(either: list[Instance]) -> None:
    """Grants checked at merge time by causal position; revocation never deletes locally owned bytes."""
    atlas, cms, belle2 = either
    adopt(either, charter_document())
    cms.add_did("cms", "own")
    a_dataset(cms, SHARED, "before")
    settle(either)
    belle2.publish(Assert(Did("cms", "forged"), Identity(keys.DATASET)), Retract(Did("cms", "own")))
    settle(either)
    assert [instance.names("cms") for instance in either] == [{"own"}] * 3, "belle2 has no right in cms"
    final = next(head for head in cms.bridge.heads() if head.author == cms.bridge.me.author)
    cms.add_did(SHARED, "after")
    cms.add_files(SHARED, ["late"])
    cms.attach(SHARED, "before", [(SHARED, "late")])
    settle(either)
    assert "after" in atlas.names(SHARED)
    adopt([atlas, belle2, cms], amended(Head(final.author, final.seq, final.hash)))
    settle(either)
    assert [instance.names(SHARED) for instance in (atlas, belle2)] == [{"before", "f0", "f1"}] * 2, "what the charter cut off is void"
    own_bytes = "SELECT r.name FROM replicas r JOIN rses s ON s.id = r.rse_id WHERE s.rse = 'DISK' ORDER BY 1"
    assert cms.query(own_bytes) == [("f0",), ("f1",), ("late",)]
    assert atlas.children(SHARED, "before") == {"f0", "f1"}


def test_invariant_14_replays_write_nothing(either: list[Instance]) -> None:
    """Materialisation idempotent; replaying any prefix gives the same rows."""
    atlas, cms, belle2 = either
    a_dataset(cms, "cms")
    cms.work()
    atlas.fetch(cms)
    atlas.work()
    cms.set_open("cms", "d1", False)
    cms.work()
    cms.delete_replicas("cms", ["f1"])
    settle([atlas, cms])
    frames = cms.frames()
    for end in range(1, len(frames) + 1):  # belle2 has it segment by segment, and all before it again
        belle2.bridge.receive(frames[:end], "cms")
        belle2.work()
    settle(either)
    assert same_rows(either)
    before = [everything(instance) for instance in either]
    for instance in either:
        for end in (1, len(frames) // 2, len(frames)):
            instance.bridge.receive(frames[:end], "cms")
            instance.work()
    settle(either)
    for instance, rows in zip(either, before):
        assert everything(instance) == rows, instance.name


def test_invariant_14_a_retry_of_what_rucio_refused_writes_nothing(either: list[Instance]) -> None:
    """The same for what is parked."""
    _, cms, belle2 = either
    with cms.engine.begin() as connection:  # as a site's own rules may do
        is_postgresql = connection.dialect.name == "postgresql"
        connection.exec_driver_sql(_REFUSE_PG if is_postgresql else _REFUSE_SQLITE)
    belle2.publish_dataset("belle2", "refused")
    settle(either)
    assert any("Rucio refused" in reason for reason in cms.parked().values())
    before = everything(cms)
    cms.bridge.retry_parked(cms.now_ms + 60_000)
    assert everything(cms) == before


_REFUSE_PG = "ALTER TABLE dids ADD CONSTRAINT refuses CHECK (name <> 'refused')"
_REFUSE_SQLITE = "CREATE TRIGGER refuses BEFORE INSERT ON dids WHEN NEW.name = 'refused' BEGIN SELECT RAISE(ABORT, 'refused'); END"


def test_invariant_15_what_does_not_fit_the_local_schema_is_parked_with_its_reason(either: list[Instance]) -> None:
    """Lengths/regex checked against local schema before insert, failures reported."""
    atlas, cms, belle2 = either
    wide, odd = Did("cms", "x" * 300), Did("cms", "no spaces")
    cms.publish(Assert(wide, Identity(keys.DATASET)))
    cms.now_ms += 1000
    cms.publish(Assert(odd, Identity(keys.DATASET)))
    cms.add_did("cms", "fine")
    settle(either)
    for instance in (atlas, belle2):
        assert instance.names("cms") == {"fine"}
        parked = instance.parked()
        assert "has 300 characters; this Rucio's schema holds 250" in parked[wide]
        assert "not allowed by this Rucio's schema" in parked[odd]
