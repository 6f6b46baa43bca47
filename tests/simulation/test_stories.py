"""Whatever goes wrong, afterwards everything comes right: seeds for every kind of fault, and for all of them together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import pytest

from nsync.errors import ConfigError
from nsync.testing import Simulation, Story
from nsync.testing.faults import HOSTILE, KINDS
from nsync.testing.host import PLACES

BLOCKS = tuple(range(first, first + 16) for first in (0, 16))
"""Seeds: some 20 seconds on one core. `python -m nsync.testing --forever` goes on."""


def tell(seeds: Iterable[int], *kinds: str) -> list[Story]:
    return [Simulation(seed, kinds=kinds).run() for seed in seeds]


# ---- everything at once


@lru_cache
def stories(block: range) -> list[Story]:
    return [Simulation(seed).run() for seed in block]


def all_stories() -> list[Story]:
    return [story for block in BLOCKS for story in stories(block)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_after_any_faults_everything_comes_right(block: range) -> None:
    assert all(story.changesets for story in stories(block))


def test_every_fault_came_to_pass() -> None:
    happened: Counter[str] = Counter()
    for story in all_stories():
        happened.update(story.faults)
    assert set(happened) == set(KINDS)
    assert {story.peers for story in all_stories()} == {3, 4, 5}
    assert any(story.held for story in all_stories()), "the clock held something"
    assert any(" of 2 segments" in line for story in all_stories() for line in story.trace), "a batch had several segments"


def test_a_process_may_end_between_any_two_steps() -> None:
    ended, places = {place for story in all_stories() for place in story.places}, {*PLACES, "idle"}
    for seed in range(60):
        if not ended >= places:
            ended.update(Simulation(seed, 3, ["crash"]).run().places)
    assert ended >= places, f"nobody ended at {sorted(places - ended)}"


# ---- one kind of fault


def test_nothing_acknowledged_is_lost_and_nothing_torn_by_crashes() -> None:
    tell([*range(100, 108), 123, 138], "crash", "loss", "duplication")


def test_segments_arrive_in_any_order_and_often() -> None:
    tell(range(110, 116), "loss", "duplication", "reordering", "delay")


def test_cut_links_heal() -> None:
    tell(range(120, 126), "partition", "loss")


def test_what_the_departed_gave_to_one_all_get() -> None:
    tell(range(130, 136), "departure", "partition", "loss")


def test_time_releases_what_the_clock_guard_held() -> None:
    assert any(story.held for story in tell(range(140, 148), "skew"))


def test_a_restored_instance_signs_nothing_more_once_it_hears_what_it_lost() -> None:
    tell(range(150, 158), "restore", "loss")


def test_a_hostile_instance_changes_nothing_for_the_others() -> None:
    tell(range(160, 168), *HOSTILE)


def test_honest_instances_agree_beside_a_fork() -> None:
    tell(range(170, 178), "fork", "loss", "partition")


def test_honest_instances_agree_beside_one_that_forgot_what_it_signed() -> None:
    tell(range(180, 188), "amnesia", "loss")
    Simulation(1110, 4, ["amnesia", "crash", "partition", "restore", "succession"]).run()  # it votes anew, and passes on that it did


def test_an_instance_goes_on_as_its_next_incarnation() -> None:
    tell(range(190, 200), "succession", "loss")
    tell(range(200, 206), "succession", "restore", "loss")


def test_floors_are_decided_beside_faults_and_change_nothing_but_what_they_settle() -> None:
    assert sum(story.floors for story in tell(range(210, 216), "loss", "crash", "partition")) >= 6


def test_who_votes_twice_and_who_lies_about_heads_moves_nobody() -> None:
    tell(range(220, 226), "double-vote", "false-head", "loss")


def test_what_is_said_to_be_gone_is_believed_by_nobody_and_comes_back() -> None:
    """From whoever has it: who was away, or lost its database, asks the hostile one like any other."""
    told = [Simulation(seed, 4, ["wrong-gone", "restore", "loss", "partition"]).run() for seed in (309, 312, 313, 326, 329)]
    assert any(re.search(r"puts [1-9]\d* ops back below floor", line) for story in told for line in story.trace), (
        "ops were put back below a floor"
    )


# ---- what a story is


def test_one_seed_tells_one_story() -> None:
    first, second = Simulation(7).run(), Simulation(7).run()
    assert first == second
    assert Simulation(8).run().trace_hash != first.trace_hash
    code = "from nsync.testing import Simulation; print(Simulation(7).run().trace_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == first.trace_hash


def test_a_fault_that_never_happens_fails_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsync.testing.faults.Dice.strike", lambda self, kind: False)
    monkeypatch.setattr("nsync.testing.director.BURSTS_MAX", 1)
    with pytest.raises(AssertionError, match="was to have delay, loss, and that never happened"):
        Simulation(1, kinds=["loss", "delay"]).run()


@pytest.mark.parametrize(
    ("peers", "kinds", "text"),
    [
        (3, ["flood"], "no faults called flood"),
        (3, ["garbage", "departure"], "have 4"),
        (8, ["loss"], "2 to 7 peers, not 8"),
        (1, ["loss"], "have 2"),
    ],
)
def test_a_story_that_cannot_be_told_says_so(peers: int, kinds: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Simulation(1, peers, kinds).run()


def test_the_command_tells_seeds_and_their_rate() -> None:
    command = [sys.executable, "-m", "nsync.testing", "1-2", "--peers", "3", "--faults", "loss,crash"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 seeds in" in run.stdout
    assert "a second; all hold" in run.stdout
    assert "  loss\n" in run.stdout
