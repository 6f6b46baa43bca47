"""What is live below a floor, in SQL, against the obvious way: for any heads that may become one, compacted or not, whatever is kept."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Optional
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from nsync.authority.charter import AuthorId, Place
from nsync.authority.effective import Authority
from nsync.catalogue.world import World
from nsync.log import compaction as blocks
from nsync.log.compaction import digest_of
from nsync.log.floor import Floor, Vote, sign_vote
from nsync.log.segment import Dep, Segment
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attachment, Attribute, Did
from nsync.namespace.ops import Assert, Retract, encode_op
from nsync.store import compaction, live, schema
from nsync.store.database import writing
from nsync.store.log import SqlLog
from tests.property import stories
from tests.property.stories import NAMES, STORIES, Story, _key, tell
from tests.property.test_stories import in_causal_order
from tests.support.database import apply_all, disposed, empty, memory_engine, receive

STORIES_TOLD = int(os.environ.get("NSYNC_STORIES", "2000"))
BLOCK_OPS = 4

FILE, SET = Did("atlas", "f1"), Did("atlas", "d1")
SAYINGS = (
    [Assert(FILE, Identity("F", 1, bytes(4), None))],
    [Retract(FILE)],
    [Assert(FILE, Identity("F", 2, bytes(4), None)), Assert(Attachment(SET, FILE), True)],
    [Assert(SET, Identity("D"))],
    [Assert(Attachment(SET, FILE), True), Assert(Attribute(FILE, "datatype"), "RAW")],
    [Retract(Attachment(SET, FILE))],
    [Assert(Attribute(FILE, "datatype"), "AOD")],
    [Assert(Attribute(SET, "closed"), True)],
    [Assert(Attribute(SET, "opendata"), "PUBLIC"), Retract(Attribute(FILE, "datatype"))],
)
"""Few, about few keys, so that much is superseded, in an op whole or in part."""
REPEATED = st.tuples(
    st.just("publish"),
    st.sampled_from(["atlas", "atlas", "cms", "ska"]),
    st.integers(0, 1),
    st.lists(st.sampled_from(SAYINGS).map(encode_op), min_size=3, max_size=8),
)
AGREED = st.sampled_from(NAMES).map(lambda name: [("sync", name, 0), ("floor", name, 0, list(NAMES[:3]))])
ODDITIES = st.one_of(stories.REVOKE, stories.CLONE, stories.GRANT, stories.SYNC, stories.INCARNATE).map(lambda step: [step])
CHAPTERS = st.lists(st.one_of(*[REPEATED.map(lambda step: [step])] * 4, *[AGREED] * 3, ODDITIES), min_size=12, max_size=24)
LONG_STORIES = st.tuples(stories.WELCOME, CHAPTERS).map(lambda both: [both[0], *(step for chapter in both[1] for step in chapter)])


def proposal(log: SqlLog, segments: Sequence[Segment], rng: random.Random) -> Optional[Floor]:
    """What is here of a part of the story, as a floor: the ends of changesets on the lines that stand, none below the newest floor."""
    floors = log.lines.usable_floors
    heads = {head.author: head for head in floors[-1].heads} if floors else {}
    for segment in segments[: rng.randint(0, len(segments))]:
        header = segment.header
        mark = log.lines.mark(header.author, Place(header.last, segment.hash))
        held = heads[header.author].seq if header.author in heads else 0
        if header.commit and mark is not None and log.lines.stands(mark) and held < header.last:
            heads[header.author] = Dep(header.author, header.last, segment.hash)
    return Floor(len(floors) + 1, log.authority.charter.version, tuple(sorted(heads.values())), bytes(16)) if heads else None


def votes_for(story: Story, floor: Floor) -> list[Vote]:
    """Three of four, by the keys of their first incarnations."""
    authors = {name: AuthorId(story.charters[0].by_name(name).author) for name in NAMES}
    return [sign_vote(story.charters[0].federation, authors[name], floor, _key(name, 0).sign) for name in NAMES[:3]]


def expected(story: Story, segments: Sequence[Segment], votes: Sequence[Vote], heads: Mapping[bytes, int]) -> bytes:
    return digest_of(World(story.charters[-1], segments, votes).live(), heads)


def check(engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    """Take in a story in parts, votes in between; ask again and again what would be live below some heads; compact now and then."""
    story = tell(steps)
    authority = Authority(story.charters[-1])
    segments = in_causal_order(story.segments, rng)
    votes = list({(vote.author, vote.floor.number): vote for vote in story.votes}.values())  # nobody votes twice
    came = 0
    while came < len(segments) or votes:
        came += (count := rng.randint(1, 6))
        receive(engine, [segment.frame for segment in segments[came - count : came]], authority)
        apply_all(engine, authority=authority)
        with writing(engine) as connection:
            log = SqlLog(connection, authority)
            log.vote(votes[: (some := rng.randint(0, 4))])
            votes = votes[some:]
            floor = proposal(log, segments[:came], rng)
            if floor is not None:
                heads = {head.author: head.seq for head in floor.heads}
                elected = log.lines.usable_floors and log.lines.usable_floors[-1].heads == floor.heads
                signed = [] if elected else votes_for(story, floor)
                assert log.live_of(heads) == expected(story, segments[:came], [*usable(log), *signed], heads)
        with writing(engine) as connection:
            if rng.random() < 0.5:
                SqlLog(connection, authority).compact()
            if rng.random() < 0.2:
                connection.execute(delete(schema.block))


def usable(log: SqlLog) -> list[Vote]:
    """The votes for floors that are in force here: a later one whose heads have not come yet would make a proposal of its number void."""
    numbers = {floor.number for floor in log.lines.usable_floors}
    return [vote for vote in log.lines.votes() if vote.floor.number in numbers]


def in_small_parts(rng: random.Random) -> Any:
    """Blocks and stretches of some ops, so that a story has several."""
    stack = ExitStack()
    for module in (blocks, compaction, live):
        stack.enter_context(mock.patch.object(module, "BLOCK_OPS", BLOCK_OPS))
    stack.enter_context(mock.patch.object(compaction, "STRETCH_OPS", rng.randint(1, 5)))
    return stack


def test_a_later_floor_kills_more_in_older_blocks() -> None:
    """First claims stay, whatever came later; what is said again kills what was said before, blocks ago too."""
    said = [SAYINGS[index] for index in (0, 1, 3, 4, 6, 5, 1, 7)]
    first = [("publish", "atlas", 0, [encode_op(one)]) for one in said]
    again = [("publish", "atlas", 0, [encode_op(one)]) for one in (SAYINGS[4], SAYINGS[0], SAYINGS[1])]
    agreed = [("sync", "atlas", 0), ("floor", "atlas", 0, list(NAMES[:3]))]
    story = tell([*first, *agreed, *again, *agreed])
    authority = Authority(story.charters[-1])
    with disposed(memory_engine()) as engine, in_small_parts(random.Random(1)):
        receive(engine, [segment.frame for segment in story.segments], authority)
        apply_all(engine, authority=authority)
        for number in (1, 2):
            votes = [vote for vote in story.votes if vote.floor.number == number]
            heads = {head.author: head.seq for head in votes[0].floor.heads}
            wanted = expected(story, story.segments, [vote for vote in story.votes if vote.floor.number <= number], heads)
            with writing(engine) as connection:
                assert SqlLog(connection, authority).live_of(heads) == wanted, "when it is proposed"
                SqlLog(connection, authority).vote(votes)
                assert SqlLog(connection, authority).live_of(heads) == wanted, "when it is elected"
                assert SqlLog(connection, authority).compact() == {1: 2, 2: 4}[number]
                assert SqlLog(connection, authority).live_of(heads) == wanted, "when it is compacted"


@settings(max_examples=STORIES_TOLD * 200 // 2000, deadline=None)
@given(LONG_STORIES | STORIES, st.randoms(use_true_random=False))
def test_what_is_live_below_any_heads(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    with disposed(memory_engine()) as engine, in_small_parts(rng):
        check(engine, steps, rng)


@pytest.mark.postgres
@settings(max_examples=20, deadline=None)
@given(LONG_STORIES, st.randoms(use_true_random=False))
def test_what_is_live_on_postgresql(postgres_engine: Engine, steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    empty(postgres_engine)
    with in_small_parts(rng):
        check(postgres_engine, steps, rng)
