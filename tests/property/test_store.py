"""The SQL store against the reference: any history through both gives the same slots, heads, catalogue and conflicts."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.histories import HISTORIES
from tests.property.test_reference import everything, in_order, play
from tests.support.database import apply_all, contents, memory_engine, receive, reference_contents


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_sql_equals_reference_in_any_order_and_grouping(history: object, rng: random.Random) -> None:
    segments = everything(play(history))
    expected = reference_contents(in_order(segments, rng).state)
    engine = memory_engine()
    frames = [segment.frame for segment in segments]
    deliveries = frames + rng.sample(frames, len(frames) // 2)
    rng.shuffle(deliveries)
    while deliveries:
        size = rng.randint(1, 5)
        batch, deliveries = deliveries[:size], deliveries[size:]
        receive(engine, batch)
        if rng.random() < 0.5:
            apply_all(engine)
        if not deliveries:
            missing = receive(engine, frames)  # a gap is refused, and fetched again: repeat until all are in
            deliveries = frames if missing.rejected else []
    apply_all(engine)
    assert contents(engine) == expected
    engine.dispose()
