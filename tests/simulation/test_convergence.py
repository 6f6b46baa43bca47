"""A new segment is everywhere after about log2(N) rounds of anti-entropy, and within a second where peers are told."""

from __future__ import annotations

import math
import statistics

import pytest

from nsync.testing.convergence import rounds, seconds

SEEDS = range(3)
ROUNDS_BEYOND_MAX = 3.0


@pytest.mark.parametrize("peers", [2, 3, 8, 20, 50])
def test_anti_entropy_alone_takes_logarithmically_many_rounds(peers: int) -> None:
    found = [rounds(peers, seed) for seed in SEEDS]
    assert max(found) <= math.log2(peers) + ROUNDS_BEYOND_MAX, f"{peers} instances: {found} rounds"


@pytest.mark.parametrize("peers", [2, 9, 10, 20, 50])
def test_what_is_new_is_everywhere_within_a_second(peers: int) -> None:
    """To all at once up to nine instances, by the flood beyond."""
    found = [seconds(peers, seed) for seed in SEEDS]
    assert max(found) < 1.0, f"{peers} instances: {found} s"


def test_the_rounds_hardly_grow_with_the_number_of_instances() -> None:
    few, many = (statistics.mean(rounds(peers, seed) for seed in SEEDS) for peers in (8, 50))
    assert many - few <= math.log2(50 / 8), f"{few:.1f} rounds among 8, {many:.1f} among 50"
