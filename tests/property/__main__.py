"""Stories without end: `python -m tests.property [SECONDS]` tells new ones, and stops at the first that fails.

The store against the obvious way, as `test_stories`, `test_live` and `test_voting` do; each round draws from another seed, which is
printed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from tests.property import test_live, test_voting
from tests.property.stories import FORK_STORIES, GRANT_STORIES, STORIES
from tests.property.test_stories import check, check_compacted, check_rebuilt, check_sayable
from tests.support.database import disposed, memory_engine

ROUND = 200
Steps = Sequence[tuple[Any, ...]]


def check_live(engine: Engine, steps: Steps, rng: random.Random) -> None:
    with test_live.in_small_parts(rng):
        test_live.check(engine, steps, rng)


def check_votes(engine: Engine, steps: Steps, rng: random.Random) -> None:
    seed = rng.randrange(1 << 32)
    test_voting.check(steps, random.Random(seed), compacts=bool(seed % 2))


class Law(NamedTuple):
    """What holds of any story."""

    holds: Callable[[Engine, Steps, random.Random], None]
    stories: st.SearchStrategy[Steps]
    times: int = ROUND


LAWS = (
    Law(check, STORIES),
    Law(check, GRANT_STORIES),
    Law(check, FORK_STORIES),
    Law(check_compacted, STORIES),
    Law(check_rebuilt, STORIES),
    Law(check_sayable, STORIES, ROUND // 2),
    Law(check_live, test_live.LONG_STORIES | STORIES),
    Law(check_votes, GRANT_STORIES | FORK_STORIES, ROUND // 10),
)


def tell_some(number: int) -> None:
    for law in LAWS:

        @seed(number)
        @settings(max_examples=law.times, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(law.stories, st.randoms(use_true_random=False))
        def story(steps: Steps, rng: random.Random) -> None:
            with disposed(memory_engine()) as engine:
                law.holds(engine, steps, rng)  # noqa: B023 - run at once

        story()


def main(seconds: float) -> None:
    began, told = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        number = random.SystemRandom().randrange(1 << 32)
        print(f"seed {number}", flush=True)
        tell_some(number)
        told += sum(law.times for law in LAWS)
        print(f"{told} stories in {time.monotonic() - began:.0f} s, none differs", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))
