"""The SQL store against the obvious way, over stories with grants, forks, floors, new incarnations and scopes that move."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from nsync.authority.effective import Authority
from nsync.authority.rulings import VOID
from nsync.catalogue import view
from nsync.catalogue.reference import Reference
from nsync.catalogue.world import World
from nsync.crdt import Dot
from nsync.log import segment as segments
from nsync.log.segment import Segment
from nsync.namespace import fields
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attachment, Attribute, Did, Replica, Rse, Scope
from nsync.namespace.ops import VERBS, Assert, Retract, Statement, encode_op
from nsync.store import log as logs
from nsync.store import rebuild
from nsync.store.database import writing
from nsync.store.log import SqlLog
from tests.property.stories import FORK_STORIES, FRESH, GRANT_STORIES, NAMES, SCOPES, STORIES, Story, signing_key, tell
from tests.support.database import apply_all, contents, disposed, empty, memory_engine, receive, reference_contents

STORIES_TOLD = int(os.environ.get("NSYNC_STORIES", "2000"))
"""In all, on SQLite. Fewer where the same is tested again on another Python."""


def in_causal_order(segments: Sequence[Segment], rng: random.Random) -> list[Segment]:
    """Each segment after what it continues and names; otherwise in any order."""
    known: set[bytes] = {bytes(16)}
    waiting, found = list(segments), []
    while waiting:
        rng.shuffle(waiting)
        ready = [s for s in waiting if s.header.prev in known and all(dep.hash in known for dep in s.header.deps)]
        assert ready, "every story is causally closed"
        known |= {segment.hash for segment in ready}
        found += ready
        waiting = [segment for segment in waiting if segment.hash not in known]
    return found


def deliver(engine: Engine, story: Story, rng: random.Random) -> dict[str, Any]:
    """What a store holds after it got everything in some order and grouping, amendments and votes in between."""
    charters = list(story.charters)
    authority = Authority(charters.pop(0) if rng.random() < 0.5 else charters[-1])
    votes, frames = list(story.votes), [segment.frame for segment in story.segments]
    late = rng.random() < 0.3
    """Whether amendments come after all else."""
    rng.shuffle(votes)
    deliveries = frames + rng.sample(frames, len(frames) // 3)
    rng.shuffle(deliveries)
    while deliveries or votes or authority.charter is not story.charters[-1]:
        size = rng.randint(1, 5)
        batch, deliveries = deliveries[:size], deliveries[size:]
        receive(engine, batch, authority)
        if rng.random() < 0.5:
            apply_all(engine, authority=authority)
        if votes and rng.random() < 0.3:
            some, votes = votes[:2], votes[2:]
            with writing(engine) as connection:
                SqlLog(connection, authority).vote(some)
        if authority.charter is not story.charters[-1] and rng.random() < 0.3 and not (late and deliveries):
            following = next(one for one in story.charters if one.version == authority.charter.version + 1)
            with writing(engine) as connection:
                SqlLog(connection, authority).adopt(following)
            authority = Authority(following)
        if not deliveries and authority.charter is story.charters[-1] and receive(engine, frames, authority).rejected:
            deliveries = frames
    apply_all(engine, authority=authority)
    return contents(engine, authority)


def compacted(engine: Engine, story: Story, rng: random.Random) -> tuple[dict[str, Any], dict[bytes, list[tuple[int, bytes]]]]:
    """What a store holds that collects at every floor, and the ops below the last one that it kept."""
    authority = Authority(story.charters[-1])
    frames, votes = [segment.frame for segment in in_causal_order(story.segments, rng)], list(story.votes)
    while frames or votes:
        count = rng.randint(1, 4)
        receive(engine, frames[:count], authority)
        apply_all(engine, authority=authority)
        frames = frames[count:]
        with writing(engine) as connection:
            log = SqlLog(connection, authority)
            log.vote(votes[: (some := rng.randint(0, 4))])
            votes = votes[some:]
            log.compact()
    with writing(engine) as connection:
        log = SqlLog(connection, authority)
        heads = log.lines.floors()[-1] if log.lines.floors() else {}
        kept = {author: [one for one in log.stored_ops(author, seq) if not one[2]] for author, seq in heads.items()}
        live = {author: [(seq, leaf) for seq, leaf, _ in ops] for author, ops in kept.items() if ops}
    return contents(engine, authority), live


def rebuilt(engine: Engine, story: Story, rng: random.Random) -> dict[str, Any]:
    """What a store holds that takes everything in first, and derives the catalogue at the end."""
    authority = Authority(story.charters[-1])
    receive(engine, [segment.frame for segment in in_causal_order(story.segments, rng)], authority)
    with writing(engine) as connection:
        log = SqlLog(connection, authority)
        log.vote(story.votes)
        while (applied := log.apply_next(1 << 44, catalogue=False)) is not None:
            assert not applied.changed, "nothing is derived yet"
    with writing(engine) as connection:
        SqlLog(connection, authority).rebuild()
    return contents(engine, authority)


def expected(story: Story, rng: random.Random) -> dict[str, Any]:
    reference = Reference(story.charters[-1], story.votes)
    for segment in in_causal_order(story.segments, rng):
        reference.apply(segment)
    return reference_contents(reference)


def check(engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    """In changesets of one segment or several, looked at whole or in parts."""
    with mock.patch.object(segments, "OPS_MAX", rng.choice((1, 2, 4096))):
        story = tell(steps)
    with (
        mock.patch.object(logs, "PART_STATEMENTS", rng.choice((1, 3, 8192))),
        mock.patch.object(view, "TOUCHED_MAX", rng.choice((1, 3, 8192))),
    ):
        found = deliver(engine, story, rng)
    wanted = expected(story, rng)
    for part in wanted:
        assert found[part] == wanted[part], part


def check_rebuilt(engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    story = tell(steps)
    with mock.patch.object(rebuild, "STRETCH_OPS", rng.randint(1, 4)):
        found = rebuilt(engine, story, rng)
    wanted = expected(story, rng)
    for part in wanted:
        assert found[part] == wanted[part], part


DATASET = Assert(Did("atlas", "d1"), Identity("D"))
ANOTHERS = Assert(Did("cms", "d1"), Identity("D"))
DOI = "10.5072/ATLAS.1"
AMENDED: dict[str, list[tuple[Any, ...]]] = {
    "a guest more": [("publish", "cms", 0, [encode_op([DATASET])]), ("invite", "cms", "atlas")],
    "a scope that was nobody's": [
        ("publish", "cms", 0, [encode_op([Assert(Did(FRESH, "d1"), Identity("D"))])]),
        ("delegate", "atlas", ["cms"]),
    ],
    "a scope that was nobody's, about which grants were made before": [
        ("grant", "atlas", 0, "cms", FRESH, "", VERBS),
        ("fetch", "cms", 0, "atlas", 0),
        ("publish", "cms", 0, [encode_op([Assert(Did(FRESH, "d1"), Identity("D"))])]),
        ("delegate", "atlas", []),
    ],
    "DOIs that nobody decides about any more": [
        ("publish", "cms", 0, [encode_op([ANOTHERS, Assert(Attribute(ANOTHERS.key, fields.DOI), DOI)])]),
        ("publish", "atlas", 0, [encode_op([DATASET, Assert(Attribute(DATASET.key, fields.DOI), DOI)])]),
        ("dois", "10.5072/ATLAS.", ""),
    ],
    "DOIs that another decides about": [
        ("publish", "cms", 0, [encode_op([ANOTHERS, Assert(Attribute(ANOTHERS.key, fields.DOI), DOI)])]),
        ("publish", "atlas", 0, [encode_op([DATASET, Assert(Attribute(DATASET.key, fields.DOI), DOI)])]),
        ("dois", "10.5072/ATLAS.", "cms"),
    ],
}


@pytest.mark.parametrize("steps", AMENDED.values(), ids=AMENDED)
def test_what_was_said_before_an_amendment_is_read_by_it(steps: list[tuple[Any, ...]]) -> None:
    story = tell(steps)
    genesis, following = story.charters
    with disposed(memory_engine()) as engine:
        assert not receive(engine, [segment.frame for segment in story.segments], Authority(genesis)).rejected
        apply_all(engine, authority=Authority(genesis))
        before = contents(engine, Authority(genesis))
        with writing(engine) as connection:
            SqlLog(connection, Authority(genesis)).adopt(following)
        found, wanted = contents(engine, Authority(following)), expected(story, random.Random(0))
        assert found == wanted
        assert found["catalogue"] != before["catalogue"], "the amendment says something"


@settings(max_examples=STORIES_TOLD * 400 // 2000, deadline=None)
@given(GRANT_STORIES, st.randoms(use_true_random=False))
def test_grants_and_revocations(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check(engine, steps, rng)


def _sayings(name: str) -> list[Statement]:
    """Something of every verb, and what only homes and owners say, in each scope."""
    found: list[Statement] = []
    for scope in (*SCOPES, FRESH):
        file, dataset = Did(scope, "f9"), Did(scope, "d9")
        found += [
            Assert(Scope(scope), True),
            Assert(file, Identity("F", 1)),
            Assert(Attachment(dataset, file), True),
            Assert(Attribute(dataset, fields.CLOSED), True),
            Assert(Attribute(dataset, fields.OPENDATA), fields.PUBLIC),
            Assert(Attribute(file, fields.OPENDATA), fields.SUSPENDED),
            Assert(Attribute(file, "datatype"), "RAW"),
            Assert(Replica(file, Rse(name, "DISK")), "p/1"),
            Assert(Replica(file, Rse("ska", "TAPE")), "p/1"),
            Retract(Did(scope, "c9")),
        ]
    return found


def check_sayable(engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    """What an instance may say is what is not void once it has said it."""
    story = tell(steps)
    deliver(engine, story, rng)
    charter = story.charters[-1]
    for name in NAMES:
        me = charter.by_name(name)
        assert me is not None
        sayings = _sayings(name)
        with writing(engine) as connection:
            log = SqlLog(connection, Authority(charter))
            if len(log.lines.of(me.author)) > 1 or not log.is_applied(me.author) or log.read_only(me.author) is not None:
                continue
            sayable = log.state.sayable(me, sayings)
            before = log.lines.head(me.author)
            log.publish([encode_op([one]) for one in sayings], me.author, signing_key(me).sign, 1 << 43)
            counts = [one for seq, one in enumerate(sayings, before + 1) if _counts_or_waits(log, one, Dot(me.author, seq))]
            assert sayable == counts, name


def _counts_or_waits(log: SqlLog, one: Statement, dot: Dot) -> bool:
    ruling = next(ruling for said, ruling in log.state.statements.history(one.key) if said.slot.dot == dot)
    return ruling is not None and ruling.standing != VOID


@settings(max_examples=max(1, STORIES_TOLD * 50 // 2000), deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_what_an_instance_may_say_is_what_counts_or_waits(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check_sayable(engine, steps, rng)


@settings(max_examples=STORIES_TOLD * 400 // 2000, deadline=None)
@given(FORK_STORIES, st.randoms(use_true_random=False))
def test_clones_and_floors(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check(engine, steps, rng)


@settings(max_examples=STORIES_TOLD * 650 // 2000, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_everything_at_once(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check(engine, steps, rng)


def check_compacted(engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    story = tell(steps)
    (found, live), wanted = compacted(engine, story, rng), expected(story, rng)
    for part in set(wanted) - {"effective"}:
        assert found[part] == wanted[part], part
    assert live == World(story.charters[-1], in_causal_order(story.segments, rng), story.votes).live()


@settings(max_examples=STORIES_TOLD * 300 // 2000, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_compaction_changes_no_reading_and_keeps_what_is_live(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check_compacted(engine, steps, rng)


# ---- the same on PostgreSQL


@pytest.mark.postgres
@settings(max_examples=40, deadline=None)
@given(GRANT_STORIES | FORK_STORIES | STORIES, st.randoms(use_true_random=False))
def test_any_story_on_postgresql(postgres_engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    empty(postgres_engine)
    check(postgres_engine, steps, rng)


@pytest.mark.postgres
@settings(max_examples=20, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_compaction_on_postgresql(postgres_engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    empty(postgres_engine)
    check_compacted(postgres_engine, steps, rng)


@settings(max_examples=STORIES_TOLD * 200 // 2000, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_a_catalogue_that_is_derived_at_the_end_is_the_same(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    check_rebuilt(memory_engine(), steps, rng)
