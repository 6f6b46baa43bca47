"""What a member can make the others do, counted and not timed: it slows itself at most, whatever it signs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select

from nsync.clock import Stamp
from nsync.log.compaction import BLOCK_OPS
from nsync.log.forks import Mark
from nsync.log.segment import DEPS_MAX, EMPTY, Dep, Segment, Tip, build_changeset, decode_header, gone
from nsync.log.stored import FULL
from nsync.namespace import codec, fields
from nsync.namespace.ops import ACKNOWLEDGE, VERBS, Grant, Revoke, encode_grant, encode_revoke
from nsync.store import schema
from nsync.store.compaction import compact_anew, forget_blocks
from nsync.store.database import writing
from nsync.store.index import NODES_BYTES_MAX, Numbers
from nsync.store.intake import WAITING_SEGMENTS_MAX
from nsync.store.lines import SqlLines
from nsync.store.log import SqlLog
from nsync.store.statements import OPS_BYTES_MAX
from tests.support.below import Below, agreed, honest
from tests.support.below import run as repaired
from tests.support.database import apply_all, disposed, memory_engine, receive
from tests.support.federation import AUTHOR, AUTHORITY, CHARTER, KEYS

NOW_MS = 1_700_000_000_000


def calls(job: Callable[[], Any]) -> int:
    """How many functions `job` calls, built in ones too."""
    count = 0

    def counted(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        job()
    finally:
        sys.setprofile(None)
    return count


def steps(connection: Connection, job: Callable[[], Any]) -> int:
    """How many steps SQLite takes for `job`."""
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1

    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(counted, 1)
    try:
        job()
    finally:
        driver.set_progress_handler(None, 0)
    return count


def changeset(name: str, ops: Sequence[bytes], tip: Tip = EMPTY, deps: Sequence[Dep] = ()) -> list[Segment]:
    return list(
        build_changeset(
            ops,
            federation=CHARTER.federation,
            charter_version=1,
            author=AUTHOR[name],
            tip=tip,
            stamp=Stamp(max(NOW_MS, tip.stamp.ms + 1), 0),
            deps=deps,
            sign=KEYS[name].sign,
        )
    )


def end(made: Segment) -> Tip:
    return Tip(made.header.last, made.hash, made.header.stamp, 0)


def log(name: str, length: int, after: Sequence[Segment] = ()) -> list[Segment]:
    """So many segments, which go on from the last of `after`."""
    made = list(after)
    for _ in range(length):
        made += changeset(name, [ACKNOWLEDGE], end(made[-1]) if made else EMPTY)
    return made[len(after) :]


def take(engine: Engine, segments: Sequence[Segment]) -> None:
    assert receive(engine, [segment.frame for segment in segments]).rejected == ()
    apply_all(engine)


# ---- grants


def granting(name: str, count: int) -> list[Segment]:
    """`count` grants, each revoked."""
    grant = encode_grant(Grant("belle2", name, "", ("meta",), None))
    return changeset(name, [grant] * count + [encode_revoke(Revoke(AUTHOR[name], seq)) for seq in range(1, count + 1)])


def cost_of_grants(count: int, home: str) -> int:
    """Of looking at the grants of `home`, when cms has made and revoked `count`."""
    with disposed(memory_engine()) as engine:
        take(engine, [*granting("cms", count), *granting("atlas", 3)])
        with engine.connect() as connection:
            lines = SqlLines(connection, CHARTER)
            assert len(lines.branches) == 2
            return calls(lambda: lines.given(AUTHOR[home]))


def test_grants_of_one_home_slow_its_own_scopes_only() -> None:
    assert cost_of_grants(200, "atlas") <= cost_of_grants(20, "atlas") + 50
    assert cost_of_grants(200, "cms") <= 11 * cost_of_grants(20, "cms"), "each revocation is looked at once"


def test_who_revokes_what_another_has_granted_says_nothing() -> None:
    with disposed(memory_engine()) as engine:
        take(engine, changeset("atlas", [encode_grant(Grant("belle2", "atlas", "", VERBS, None))]))
        take(engine, changeset("cms", [encode_revoke(Revoke(AUTHOR["atlas"], 1))]))
        with engine.connect() as connection:
            (given,) = SqlLines(connection, CHARTER).given(AUTHOR["atlas"])
    assert given.revocations == ()


# ---- segments that are known


def cost_of_known(length: int) -> int:
    """Of the first and the last segment of a log that is here."""
    with disposed(memory_engine()) as engine:
        made = log("cms", length)
        take(engine, made)
        with writing(engine) as connection:
            stored = SqlLog(connection, AUTHORITY)
            return steps(connection, lambda: stored.store([made[0], made[-1]]))


def test_what_is_known_is_told_without_what_lies_between() -> None:
    assert cost_of_known(1000) <= cost_of_known(100) + 100


# ---- heads


def test_who_has_heard_of_more_heads_than_a_header_holds_publishes_all_the_same() -> None:
    """A few members with as many branches as there may be are enough."""
    with disposed(memory_engine()) as engine:
        stored = {"first": 1, "last": 1, "hash": b"h" * 16, "stamp_ms": NOW_MS, "stamp_logical": 0, "open_segments": 0}
        applied = {"applied": 1, "applied_hash": b"h" * 16, "applied_stamp_ms": NOW_MS, "applied_stamp_logical": 0}
        with writing(engine) as connection:
            rows = [{"id": n, "author": n.to_bytes(16, "big"), **stored, **applied} for n in range(1, DEPS_MAX + 3)]
            connection.execute(insert(schema.branch), rows)
        for deps in (DEPS_MAX, 2):
            with writing(engine) as connection:
                SqlLog(connection, AUTHORITY).publish([ACKNOWLEDGE], AUTHOR["cms"], KEYS["cms"].sign, NOW_MS)
                query = select(schema.segment.c.header).order_by(schema.segment.c.first.desc()).limit(1)
                assert len(decode_header(connection.execute(query).scalar_one()).deps) == deps


# ---- what is remembered


def test_ops_that_are_remembered_have_a_bounded_size() -> None:
    """All of them are read all the same."""
    raw = codec.encode((99, bytes(60_000)))
    with disposed(memory_engine()) as engine:
        take(engine, changeset("cms", [raw] * 400))
        with engine.connect() as connection:
            state = SqlLog(connection, AUTHORITY).state
            assert len(list(state.statements.ops([Mark(1, seq) for seq in range(1, 401)]))) == 400
            state.statements.load([Mark(1, seq) for seq in range(1, 401)])
            assert len(state.statements._ops) <= OPS_BYTES_MAX // len(raw)


def test_names_that_are_remembered_have_a_bounded_size() -> None:
    known = Numbers(b"k" * 16)
    name = "\U0001f52d" * 1000
    for number in range(3000):
        known.node((fields.DID, "cms", f"{name}{number}"))
    assert len(known._hashes) <= NODES_BYTES_MAX // len(name.encode())


# ---- the write lock below a floor


def kept(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.block)).scalar_one())


def test_compaction_keeps_one_digest_after_another_and_only_once_all_is_compacted() -> None:
    made = changeset("cms", [ACKNOWLEDGE] * (3 * BLOCK_OPS + 1))
    with disposed(Below("atlas", made, agreed(made)).engine) as engine:
        assert kept(engine) == 3
        with writing(engine) as connection:
            forget_blocks(connection, AUTHOR["cms"], [1, BLOCK_OPS + 1])
        for count in (2, 3):
            with writing(engine) as connection:
                log = SqlLog(connection, AUTHORITY)
                assert not log.is_compact() and log.compact(0) == 0
            assert kept(engine) == count
        with writing(engine) as connection:
            assert SqlLog(connection, AUTHORITY).is_compact()
            compact_anew(connection)
            forget_blocks(connection, AUTHOR["cms"], [1])
            assert SqlLog(connection, AUTHORITY).compact(0) == 0
        assert kept(engine) == 2, "not all is compacted"


def test_repair_leaves_the_digests_to_compaction() -> None:
    made = changeset("cms", [ACKNOWLEDGE] * 2 * BLOCK_OPS)
    lacking = [segment._replace(ops=(gone(ACKNOWLEDGE), *segment.ops[1:])) for segment in made]
    floor = agreed(made)
    whole, mine = Below("cms", made, floor), Below("atlas", lacking, floor)
    with disposed(whole.engine), disposed(mine.engine) as engine:
        found, _ = repaired(mine.repairs, honest(whole.repairs))
        assert found is not None and found.mended == 2 and mine.repairs.damage() is None
        assert kept(engine) == 0
        mine.compact()
        assert kept(engine) == 2 and mine.repairs.damage() is None


# ---- segments that are never applied


@pytest.mark.parametrize("behind", [False, True], ids=["the branch", "one that leaves it later"])
def test_what_follows_something_refused_is_refused_for_the_same_reason(behind: bool) -> None:
    """Not put off until there is room: there never is."""
    with disposed(memory_engine()) as engine:
        (one,) = log("cms", 1)
        (bad,) = changeset("cms", [ACKNOWLEDGE], end(one), [Dep(AUTHOR["cms"], 1, one.hash)])
        take(engine, [one, bad])
        waiting = log("cms", WAITING_SEGMENTS_MAX - 1, [bad])
        take(engine, waiting)
        if behind:  # another second word after the bad one
            (other,) = changeset("cms", [ACKNOWLEDGE] * 2, end(bad))
            waiting = [other, *log("cms", WAITING_SEGMENTS_MAX - 1, [other])]
            take(engine, waiting)
        (text,) = receive(engine, [segment.frame for segment in log("cms", 2, waiting)]).rejected
        assert "continues what is refused here" in text and "is its own log" in text and FULL not in text
