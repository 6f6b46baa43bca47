"""Bad input is refused or waits, with a text that says whose, which and why; everything else goes on (promise 5).

On a real Rucio database. cms is hostile, belle2 is honest, and what both say comes to atlas in one batch: belle2's
dataset must be in atlas's Rucio afterwards, and nothing that cms should not have said.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rucio.common.types import InternalScope
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDType
from sqlalchemy import text
from sqlalchemy.orm import Session

from nsync.auth.keys import SigningKey
from nsync.clock import AHEAD_MS_MAX, STAMP_MAX, Stamp
from nsync.log.segment import FRAME_BYTES_MAX, Dep, Segment, decode_frame
from nsync.log.stored import REFUSED_TOLD_MAX
from nsync.namespace import codec, keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Protocol, Replica, Rse, Scope, to_wire
from nsync.namespace.ops import Assert, Retract, Statement, encode_op
from nsync.rucio_bridge import inbox, parked
from nsync.store.log import SqlLog
from nsync.store.status import status
from tests.conformance.make import sealed
from tests.support.federation import AUTHOR, AUTHORITY, Writer
from tests.support.instances import ROOT, Instance

NOW_MS = 1_700_000_000_000
CMS = AUTHOR["cms"].hex()[:12]
DATASET, CONTAINER = Identity(keys.DATASET), Identity(keys.CONTAINER)
DISK = Rse("cms", "DISK")
GOOD = Protocol("root", "cms.example.org", 1094, "/data", "rucio.rse.protocols.xrootd.Default", 1, 1, 1)
YEAR_MS = 365 * 86_400_000


@pytest.fixture
def atlas(template_database: Path, tmp_path: Path) -> Iterator[Instance]:
    instance = Instance(template_database, tmp_path, "atlas", ["atlas"])
    instance.now_ms = NOW_MS
    yield instance
    instance.close()


def ops(*statements: Statement) -> list[bytes]:
    """One op for each statement."""
    return [encode_op([statement]) for statement in statements]


def raw_op(*statements: Statement) -> bytes:
    """An op that no honest author could encode."""
    wire = [(to_wire(s.key), s.value) if isinstance(s, Assert) else (to_wire(s.key),) for s in statements]
    return codec.pack((1, *wire))


def from_cms(*statements: Statement, **changes: Any) -> Segment:
    return sealed("cms", ops(*statements), **changes)


def a_dataset(name: str = "d1") -> Assert:
    return Assert(Did("cms", name), DATASET)


def after(segment: Segment, *statements: Statement, **changes: Any) -> Segment:
    """The next segment of the same log."""
    header = segment.header
    stamp = Stamp(header.stamp.ms, header.stamp.logical + 1)
    return from_cms(*statements, **{"first": header.last + 1, "prev": segment.hash, "stamp": stamp, **changes})


def honest(name: str = "honest") -> list[bytes]:
    """A changeset of belle2."""
    return [segment.frame for segment in Writer("belle2").publish(ops(Assert(Did("belle2", name), DATASET)))]


def names(instance: Instance) -> set[tuple[str, str]]:
    return {(str(scope), str(name)) for scope, name in instance.query("SELECT scope, name FROM dids")}


def reasons(instance: Instance) -> list[str]:
    with Session(instance.engine) as session:
        return [entry.reason for entry in parked.listing(session)]


def whole_database(instance: Instance) -> dict[str, list[tuple[Any, ...]]]:
    """Rucio's tables, row by row."""
    tables = instance.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'nsync%' AND name NOT LIKE 'sqlite_%'")
    return {table: sorted(instance.query(f"SELECT * FROM {table}"), key=repr) for (table,) in tables}


def content(instance: Instance) -> dict[str, list[tuple[Any, ...]]]:
    """The same without accounts, scopes and RSEs, on which others' changesets stand too."""
    return {table: rows for table, rows in whole_database(instance).items() if not table.startswith(("account", "scopes", "rse"))}


def deliver(instance: Instance, *frames: bytes) -> tuple[str, ...]:
    """Everything in one batch, belle2's changeset last; it is applied, whatever became of the rest. Returns what was refused."""
    rejected = instance.bridge.receive([*frames, *honest()], "cms").rejected
    instance.work()
    assert ("belle2", "honest") in names(instance)
    return rejected


# ---- what cannot be a segment of this federation, or not the next one: refused


FIRST = from_cms(a_dataset())
SECOND = after(FIRST, a_dataset("d2"))
STRANGER = SigningKey(b"\x66" * 32)

REFUSED: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([b""], "segment is not canonical msgpack"),
    "noise": ([random.Random(1).randbytes(500)], "segment is not canonical msgpack"),
    "truncated": ([FIRST.frame[:-1]], "segment is not canonical msgpack"),
    "half": ([FIRST.frame[: len(FIRST.frame) // 2]], "segment is not canonical msgpack"),
    "with more at the end": ([FIRST.frame + b"\x00"], "segment is not canonical msgpack"),
    "oversized": ([bytes(FRAME_BYTES_MAX + 1)], f"a segment has {FRAME_BYTES_MAX + 1} bytes; at most {FRAME_BYTES_MAX} are allowed"),
    "not canonical": ([b"\xdc\x00\x03" + FIRST.frame[1:]], "segment is msgpack, but not in its canonical form"),
    "a map": ([b"\x80"], "segment is not canonical msgpack: TypeError: dict has no place"),
    "wrongly signed": ([sealed("cms", FIRST.ops, key=STRANGER).frame], f"segment {CMS} 1-1: the signature is not its author's"),
    "unknown author": (
        [from_cms(a_dataset(), author=b"x" * 16).frame],
        f"segment {(b'x' * 6).hex()} 1-1: the charter names no such author",
    ),
    "another's name": (
        [from_cms(a_dataset(), author=AUTHOR["atlas"]).frame],
        f"segment {AUTHOR['atlas'].hex()[:12]} 1-1: the signature is not",
    ),
    "other federation": (
        [from_cms(a_dataset(), federation=b"f" * 16).frame],
        f"segment {CMS} 1-1: it belongs to federation {(b'f' * 16).hex()}",
    ),
    "other charter version": ([from_cms(a_dataset(), charter_version=9).frame], f"segment {CMS} 1-1 of cms: made under charter version 9"),
    "a gap": ([SECOND.frame], f"cms: segment {CMS} 2-2: a gap: it continues a segment that is not here; the log here ends at 0"),
    "a gap on another branch": (
        [FIRST.frame, after(from_cms(a_dataset("other")), a_dataset("d2")).frame],
        f"cms: segment {CMS} 2-2: a gap: it continues a segment that is not here; the log here ends at 1",
    ),
    "a stamp not after": (
        [FIRST.frame, after(FIRST, a_dataset("d2"), stamp=FIRST.header.stamp).frame],
        f"cms: segment {CMS} 2-2: its stamp ",
    ),
    "65 statements": (
        [sealed("cms", [raw_op(*(a_dataset(str(i)) for i in range(65)))]).frame],
        f"segment {CMS} 1-1 of cms: op 1: an op has 65",
    ),
    "a line break in a name": (
        [sealed("cms", [raw_op(a_dataset("a\nb"))]).frame],
        f"segment {CMS} 1-1 of cms: op 1: name 'a\\nb' has a control",
    ),
    "a name of 1025 characters": ([sealed("cms", [raw_op(a_dataset("n" * 1025))]).frame], f"segment {CMS} 1-1 of cms: op 1: 'nnn"),
    "a DOI that is none": (
        [sealed("cms", [raw_op(Assert(Attribute(Did("cms", "d1"), keys.DOI), "javascript:alert(1)"))]).frame],
        f"segment {CMS} 1-1 of cms: op 1: 'javascript:alert(1)' is not a DOI",
    ),
}


@pytest.mark.parametrize(("frames", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_honest_author_could_send_is_refused(frames: list[bytes], text: str, atlas: Instance, caplog: Any) -> None:
    rejected = deliver(atlas, *frames)
    assert len(rejected) == 1 and rejected[0].startswith(text), rejected
    assert f"refused a segment that cms brought: {text}" in caplog.text
    assert {name for scope, name in names(atlas) if scope == "cms"} <= {"d1"}


def test_who_sends_much_that_is_refused_fills_no_log(atlas: Instance, caplog: Any) -> None:
    (frames, _), *_ = REFUSED.values()
    rejected = deliver(atlas, *frames * 50)
    assert len(rejected) == 50
    told = [record for record in caplog.records if "refused" in record.getMessage()]
    assert len(told) == REFUSED_TOLD_MAX + 1 and f"refused {50 - REFUSED_TOLD_MAX} more" in told[-1].getMessage()


def test_who_comes_again_with_what_is_refused_fills_no_log(atlas: Instance, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each peer a batch a minute is told."""
    ((frame, *_), _), *_ = REFUSED.values()
    for _ in range(50):
        assert atlas.bridge.receive([frame], "cms").rejected
    atlas.bridge.receive([frame], "lhcb")
    assert [record.getMessage().split(" brought")[0] for record in caplog.records] == [
        f"refused a segment that {n}" for n in ("cms", "lhcb")
    ]
    monkeypatch.setattr(inbox, "REFUSED_TOLD_S", 0)
    atlas.bridge.receive([frame], "cms")
    assert len(caplog.records) == 3


def test_every_single_flipped_bit_is_seen(atlas: Instance) -> None:
    frame = from_cms(a_dataset(), deps=()).frame
    flipped = [frame[:i] + bytes([frame[i] ^ (1 << bit)]) + frame[i + 1 :] for i in range(len(frame)) for bit in range(8)]
    assert len(deliver(atlas, *flipped)) == len(flipped) > 1400
    assert atlas.segments(AUTHOR["cms"]) == 0


def test_after_bad_frames_the_same_author_goes_on_with_good_ones(atlas: Instance) -> None:
    deliver(atlas, FIRST.frame[:-1], SECOND.frame, sealed("cms", FIRST.ops, key=STRANGER).frame)
    assert atlas.bridge.receive([FIRST.frame, SECOND.frame, FIRST.frame], "cms") == (2, ())
    atlas.work()
    assert {("cms", "d1"), ("cms", "d2")} <= names(atlas)


# ---- what is signed, and cannot be applied yet, or never: stored, forwarded, waits


def test_a_stamp_a_year_ahead_waits_for_its_time(atlas: Instance) -> None:
    ahead = from_cms(a_dataset(), stamp=Stamp(NOW_MS + YEAR_MS, 0))
    assert deliver(atlas, ahead.frame) == ()
    assert ("cms", "d1") not in names(atlas)
    with atlas.engine.connect() as connection:
        waits = SqlLog(connection, AUTHORITY).waits(NOW_MS)
    assert waits[AUTHOR["cms"]].startswith(f"segment {CMS} 1-1 is stamped {YEAR_MS} ms ahead of the clock here")
    assert ahead.frame in atlas.frames(), "it is passed on"
    atlas.add_scope("atlas")
    atlas.add_did("atlas", "mine")
    atlas.work()
    (mine,) = atlas.bridge.segments_after({AUTHOR["atlas"]: []}, 1 << 30)
    assert decode_frame(mine.frame).header.stamp.ms < NOW_MS + YEAR_MS // 2, "no clock follows it"
    atlas.now_ms = NOW_MS + YEAR_MS - AHEAD_MS_MAX
    atlas.work()
    assert ("cms", "d1") in names(atlas)


def test_a_stamp_with_the_greatest_counter_keeps_nobody_from_publishing(atlas: Instance) -> None:
    deliver(atlas, from_cms(a_dataset(), stamp=Stamp(NOW_MS + AHEAD_MS_MAX - 1000, STAMP_MAX)).frame)
    assert ("cms", "d1") in names(atlas)
    atlas.add_scope("atlas")
    atlas.add_did("atlas", "mine")
    atlas.work()
    assert atlas.query("SELECT applied = last FROM nsync_branch WHERE author = :a", a=AUTHOR["atlas"]) == [(1,)]


NEVER_HERE = {
    "too far": Dep(AUTHOR["belle2"], 99, bytes(16)),
    "unknown author": Dep(b"x" * 16, 1, bytes(16)),  # type: ignore[arg-type]
    "of a branch that is not here": Dep(AUTHOR["belle2"], 1, bytes(16)),
}


@pytest.mark.parametrize("dep", NEVER_HERE.values(), ids=NEVER_HERE.keys())
def test_a_dep_that_never_comes_is_waited_for(dep: Dep, atlas: Instance) -> None:
    assert deliver(atlas, from_cms(a_dataset(), deps=(dep,)).frame) == ()
    assert ("cms", "d1") not in names(atlas)
    with atlas.engine.connect() as connection:
        log = next(log for log in status(connection).logs if log.author == AUTHOR["cms"])
        waits = SqlLog(connection, AUTHORITY).waits(atlas.now_ms)
    assert (log.stored, log.applied, log.refused) == (1, 0, None)
    assert waits == {AUTHOR["cms"]: f"segment {CMS} 1-1 waits for {dep.author.hex()[:12]} {dep.seq}, which is not applied here yet"}


def honest_hash() -> bytes:
    return Writer("belle2").publish(ops(Assert(Did("belle2", "honest"), DATASET)))[-1].hash


WRONG_DEPS = {
    "stamped later": (Dep(AUTHOR["belle2"], 1, honest_hash()), {"stamp": Stamp(NOW_MS - 5000, 0)}, "is stamped"),
    "its own log": (Dep(AUTHOR["cms"], 1, bytes(16)), {}, "is its own log"),
}


@pytest.mark.parametrize(("dep", "changes", "text"), WRONG_DEPS.values(), ids=WRONG_DEPS.keys())
def test_deps_that_no_honest_author_names_stop_their_log_with_a_reason(dep: Dep, changes: Any, text: str, atlas: Instance) -> None:
    stamp = changes.get("stamp", Stamp(NOW_MS + 5, 0))
    bad = from_cms(a_dataset(), deps=(dep,), stamp=stamp)
    deliver(atlas, bad.frame)
    atlas.bridge.receive([after(bad, a_dataset("d2")).frame], "cms")
    atlas.work()
    with atlas.engine.connect() as connection:
        log = next(log for log in status(connection).logs if log.author == AUTHOR["cms"])
    assert log.applied == 0 and log.refused is not None
    assert log.refused.startswith(f"segment {CMS} 1-1: its dep {dep.author.hex()[:12]} {dep.seq} {text}")
    assert not any(scope == "cms" for scope, _ in names(atlas))


# ---- well signed and hostile: void, or parked as a whole with a reason that names the object


VOID: dict[str, Sequence[Statement]] = {
    "another home's scope": [Assert(Did("atlas", "stolen"), DATASET)],
    "another home's scope, though shared with others": [Retract(Scope("atlas.shared.x")), Assert(Scope("belle2"), True)],
    "a scope of nobody's": [Assert(Did("..", "x"), DATASET), Assert(Scope("user.root"), True)],
    "an RSE of another instance": [Assert(Rse("atlas", "DISK2"), True), Assert(Attribute(Rse("atlas", "DISK"), keys.PROTOCOLS), (GOOD,))],
    "a replica at another's RSE": [Assert(Replica(Did("cms", "f"), Rse("atlas", "DISK")), "a/b")],
    "another home's DID closed": [Assert(Attribute(Did("belle2", "honest"), keys.CLOSED), True)],
    "another home's DID retracted": [Retract(Did("belle2", "honest"))],
    "another's DID attached to another's": [Assert(Attachment(Did("belle2", "honest"), Did("cms", "d0")), True)],
}


@pytest.mark.parametrize("statements", VOID.values(), ids=VOID.keys())
def test_what_cms_may_not_say_changes_nothing(statements: Sequence[Statement], atlas: Instance, caplog: Any) -> None:
    deliver(atlas)
    before = whole_database(atlas)
    seen = Writer("belle2").publish(ops(Assert(Did("belle2", "honest"), DATASET)))[-1]
    dep = Dep(seen.header.author, seen.header.last, seen.hash)
    assert atlas.bridge.receive([from_cms(*statements, deps=(dep,), stamp=Stamp(NOW_MS + 5, 0)).frame], "cms").rejected == ()
    atlas.work()
    assert whole_database(atlas) == before
    assert reasons(atlas) == []
    assert f"cms 1-{len(statements)}: {len(statements)} statements are void: the charter does not let their author make them" in caplog.text


def door(**changes: Any) -> list[Statement]:
    return [Assert(DISK, True), Assert(Attribute(DISK, keys.PROTOCOLS), (tuple(GOOD._replace(**changes)),))]


def a_file(path: str) -> list[Statement]:
    did = Did("cms", "f1")
    return [*door(), Assert(did, Identity(keys.FILE, 1, bytes(4))), Assert(Replica(did, DISK), path)]


PARKED: dict[str, tuple[Sequence[Statement], str]] = {
    "a path for a name": ([a_dataset("a/../../x")], "name 'a/../../x' "),
    "a path upwards for a name": ([a_dataset("..")], "name '..' "),
    "markup for a name": ([a_dataset("<script>alert(1)</script>")], "name '<script>alert(1)</script>' is not allowed"),
    "SQL for a name": ([a_dataset("x'; DROP TABLE dids; --")], 'name "x\'; DROP TABLE dids; --" is not allowed'),
    "a name of 251 characters": ([a_dataset("n" * 251)], "name 'nnn"),
    "a name that reads from right to left": ([a_dataset("a\u202eb")], "name 'a\\u202eb' is not allowed"),
    "a scope upwards": ([Assert(Scope("cms/.."), True)], "scope 'cms/..' "),
    "a scope of 26 characters": ([Assert(Scope("cms" + "s" * 23), True)], "scope 'cmssss"),
    "an RSE in lower case": ([Assert(Rse("cms", "disk"), True)], "RSE name 'CMS_disk' is not allowed"),
    "an RSE named like a path": ([Assert(Rse("cms", "../DISK"), True)], "RSE name 'CMS_../DISK' is not allowed"),
    "a protocol that is os.system": (door(impl="os.system"), "RSE DISK of cms wants the protocol implementation 'os.system'"),
    "a protocol below a module of Rucio's": (
        door(impl="rucio.rse.protocols.posix.os.system"),
        "RSE DISK of cms wants the protocol implementation 'rucio.rse.protocols.posix.os.system'",
    ),
    "a protocol that is a function": (door(impl="rucio.rse.protocols.gfal.run"), "RSE DISK of cms wants the protocol implementation"),
    "a path upwards": (a_file("../../etc/passwd"), "path '../../etc/passwd' does not lie below"),
    "an absolute path": (a_file("/etc/passwd"), "path '/etc/passwd' does not lie below"),
    "a path upwards in its middle": (a_file("a/../../b"), "path 'a/../../b' does not lie below"),
}


@pytest.mark.parametrize(("statements", "reason"), PARKED.values(), ids=PARKED.keys())
def test_what_does_not_fit_is_parked_as_a_whole(statements: Sequence[Statement], reason: str, atlas: Instance) -> None:
    deliver(atlas)
    before = content(atlas)
    hostile = from_cms(a_dataset("innocent"), *statements)
    assert atlas.bridge.receive([hostile.frame], "cms").rejected == ()
    atlas.work()
    assert content(atlas) == before, "nothing of it is in Rucio's tables"
    assert any(text.startswith(reason) for text in reasons(atlas)), reasons(atlas)
    atlas.bridge.retry_parked(atlas.now_ms)
    assert content(atlas) == before
    assert {name for (name,) in atlas.query("SELECT scope FROM scopes WHERE scope LIKE 'cms%'")} <= {"cms"}
    if reason.startswith("RSE"):
        assert atlas.query("SELECT rse FROM rses WHERE rse LIKE 'CMS%'") == []
    atlas.bridge.receive([after(hostile, a_dataset("later")).frame], "cms")
    atlas.work()
    assert ("cms", "later") in names(atlas), "its later changesets go on"
    assert not {("cms", "innocent"), ("cms", "f1")} & names(atlas)


def test_a_doi_that_others_bear_is_a_conflict_and_not_taken(atlas: Instance) -> None:
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    doi = Assert(Attribute(Did("cms", "d1"), keys.DOI), "10.5072/ATLAS.1")
    atlas.work()
    deliver(atlas, from_cms(a_dataset(), doi).frame)
    assert atlas.query("SELECT scope, name FROM dids_opendata_doi") == [("atlas", "d1")]
    assert atlas.query("SELECT count(*) FROM nsync_conflict WHERE rule LIKE 'a DOI%'") == [(1,)]


@pytest.mark.parametrize("what", ["dataset", "RSE"])
def test_sizes_whose_sum_overflows_do_not_stop_the_bridge(what: str, atlas: Instance) -> None:
    """Thousands of files of the greatest size would do it; here the sizes in Rucio's rows are raised instead."""
    dataset, files = Did("cms", "d1"), [Did("cms", f"f{number}") for number in range(3)]
    first = from_cms(a_dataset(), *(Assert(did, Identity(keys.FILE, 1, bytes(4))) for did in files), *door())
    edges = after(first, *(Assert(Attachment(dataset, did), True) for did in files))
    deliver(atlas, first.frame, edges.frame)
    with atlas.session() as session:
        for table in ("dids", "contents"):
            session.execute(text(f"UPDATE {table} SET bytes = :bytes WHERE bytes IS NOT NULL"), {"bytes": 1 << 62})
    close, replicas = [Assert(Attribute(dataset, keys.CLOSED), True)], [Assert(Replica(did, DISK), did.name) for did in files]
    too_much = after(edges, *(close if what == "dataset" else replicas), a_dataset("with-it"))
    atlas.bridge.receive([too_much.frame, after(too_much, a_dataset("later")).frame], "cms")
    atlas.work()
    assert ("cms", "later") in names(atlas) and ("cms", "with-it") not in names(atlas)
    assert any(reason.startswith("Rucio refused the rows: ") for reason in reasons(atlas))


@pytest.mark.parametrize(
    "attributes",
    [
        (("nsync_origin", "atlas"),),
        (("OpenData", "True"), ("nsync_origin", "belle2")),
        (("OpenData", "True"), ("fts", "https://cms.example.org:8446")),
        (("sign_url", "s3"), ("verify_checksum", "False")),
    ],
)
def test_a_peer_sets_no_attribute_that_steers_the_local_rucio(attributes: tuple[tuple[str, str], ...], atlas: Instance) -> None:
    first = from_cms(*door(), Assert(Attribute(DISK, keys.ATTRIBUTES), attributes))
    deliver(atlas, first.frame)
    again = (*attributes, ("zz", "1"))
    atlas.bridge.receive([after(first, Assert(Attribute(DISK, keys.ATTRIBUTES), again)).frame], "cms")
    atlas.work()
    found = dict(
        atlas.query("SELECT a.key, a.value FROM rse_attr_map a JOIN rses r ON r.id = a.rse_id WHERE r.rse = 'CMS_DISK'")  # type: ignore[arg-type]
    )
    assert found.pop("nsync_origin") == "cms"
    assert set(found) <= {"OpenData", "CMS_DISK"}


def test_two_parked_changesets_and_an_honest_one_between_are_told_apart(atlas: Instance) -> None:
    one = from_cms(a_dataset("a/../../x"))
    two = after(one, a_dataset("fine"))
    three = after(two, a_dataset("b/../x"))
    deliver(atlas, one.frame, two.frame, three.frame)
    assert ("cms", "fine") in names(atlas)
    with Session(atlas.engine) as session:
        assert {entry.batch for entry in parked.listing(session)} == {"cms 1-1", "cms 3-3"}


# ---- one's own rows that no peer would take


def insert_did(instance: Instance, name: str) -> None:
    """As a script of an operator's might, past Rucio's own checks."""
    with instance.session() as session:
        did = models.DataIdentifier(scope=InternalScope("atlas"), name=name, account=ROOT, did_type=DIDType.DATASET, is_open=True)
        did.save(session=session)


@pytest.mark.parametrize(
    "name", ["a\nb", "n" * 1100, "", "tab\tname", "c1\x85"], ids=["line break", "1100 characters", "empty", "tab", "C1"]
)
def test_a_row_whose_name_no_peer_would_take_is_told_and_the_rest_is_published(name: str, atlas: Instance, caplog: Any) -> None:
    atlas.add_scope("atlas")
    atlas.add_files("atlas", ["f1", "f2"])
    atlas.add_did("atlas", "good")
    insert_did(atlas, name)
    atlas.attach("atlas", "good", [("atlas", "f1")])
    atlas.attach("atlas", name, [("atlas", "f1"), ("atlas", "f2")])
    with caplog.at_level(logging.ERROR):
        atlas.work()
    assert "not published, since no peer would accept it: " in caplog.text
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert all(len(line) < 500 and line.isprintable() for line in told), told
    shown = set(atlas.query("SELECT scope, name FROM nsync_entry WHERE kind = 2"))
    assert shown == {("atlas", "good"), ("atlas", "f1"), ("atlas", "f2")}
    assert atlas.query("SELECT count(*) FROM nsync_entry WHERE kind = 3") == [(1,)]
    assert atlas.query("SELECT count(*) FROM nsync_entry WHERE kind = 6") == [(2,)]
    assert atlas.query("SELECT count(*) FROM nsync_outbox") == [(0,)]
