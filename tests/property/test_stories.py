"""The SQL store against the obvious way, over stories with grants, forks, floors, new incarnations and scopes that move."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.authority.effective import Authority
from nsync.catalogue.reference import Reference
from nsync.log.segment import Segment
from nsync.store.database import writing
from nsync.store.log import SqlLog
from tests.property.stories import FORK_STORIES, GRANT_STORIES, STORIES, Story, tell
from tests.support.database import apply_all, contents, memory_engine, receive, reference_contents


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


def deliver(story: Story, rng: random.Random) -> dict[str, Any]:
    """What a store holds after it got everything in some order and grouping, amendments and votes in between."""
    engine = memory_engine()
    charters = list(story.charters)
    authority = Authority(charters.pop(0) if rng.random() < 0.5 else charters[-1])
    votes, frames = list(story.votes), [segment.frame for segment in story.segments]
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
        if authority.charter is not story.charters[-1] and rng.random() < 0.3:
            following = next(one for one in story.charters if one.version == authority.charter.version + 1)
            with writing(engine) as connection:
                SqlLog(connection, authority).adopt(following)
            authority = Authority(following)
        if not deliveries and authority.charter is story.charters[-1] and receive(engine, frames, authority).rejected:
            deliveries = frames
    apply_all(engine, authority=authority)
    found = contents(engine, authority)
    engine.dispose()
    return found


def expected(story: Story, rng: random.Random) -> dict[str, Any]:
    reference = Reference(story.charters[-1], story.votes)
    for segment in in_causal_order(story.segments, rng):
        reference.apply(segment)
    return reference_contents(reference)


def check(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    story = tell(steps)
    found, wanted = deliver(story, rng), expected(story, rng)
    for part in wanted:
        assert found[part] == wanted[part], part


@settings(max_examples=150, deadline=None)
@given(GRANT_STORIES, st.randoms(use_true_random=False))
def test_grants_and_revocations(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    check(steps, rng)


@settings(max_examples=150, deadline=None)
@given(FORK_STORIES, st.randoms(use_true_random=False))
def test_clones_and_floors(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    check(steps, rng)


@settings(max_examples=200, deadline=None)
@given(STORIES, st.randoms(use_true_random=False))
def test_everything_at_once(steps: Sequence[tuple[Any, ...]], rng: random.Random) -> None:
    check(steps, rng)
