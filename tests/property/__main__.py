"""Stories without end: `python -m tests.property [SECONDS]` tells new ones, and stops at the first that fails.

The store against the obvious way, as `test_stories` does; each round draws from another seed, which is printed.
"""

from __future__ import annotations

import random
import sys
import time

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.property.stories import FORK_STORIES, GRANT_STORIES, STORIES
from tests.property.test_stories import check, check_compacted
from tests.support.database import memory_engine

ROUND = 200


def tell_some(number: int) -> None:
    for stories, held in ((STORIES, check), (GRANT_STORIES, check), (FORK_STORIES, check), (STORIES, check_compacted)):

        @seed(number)
        @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(stories, st.randoms(use_true_random=False))
        def story(steps, rng) -> None:  # type: ignore[no-untyped-def]
            engine = memory_engine()
            try:
                held(engine, steps, rng)  # noqa: B023 - run at once
            finally:
                engine.dispose()

        story()


def main(seconds: float) -> None:
    began, told = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        number = random.SystemRandom().randrange(1 << 32)
        print(f"seed {number}", flush=True)
        tell_some(number)
        told += 4 * ROUND
        print(f"{told} stories in {time.monotonic() - began:.0f} s, none differs", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))
