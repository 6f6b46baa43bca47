"""Whatever goes wrong, afterwards everything comes right: seeds for every kind of fault, and for all of them together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import lru_cache

import pytest

from nsync.clock import Stamp
from nsync.errors import ConfigError
from nsync.log.segment import EMPTY, Dep, Tip, build_changeset, decode_frame
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.testing import Simulation, Story
from nsync.testing.faults import HOSTILE, KINDS
from nsync.testing.federation import federation
from nsync.testing.peer import STORES_FORKS, Peer

BLOCKS = tuple(range(first, first + 20) for first in (0, 20, 40))
"""Seeds: some 25 seconds on one core. `python -m nsync.testing --forever` goes on."""

PLACES = {
    *("receive-verified", "log-segment-stored", "receive-before-commit", "receive-after-commit"),
    *("work-locked", "publish-signed", "log-slots-joined", "log-head-advanced", "work-state-moved"),
    *("work-before-commit", "work-after-commit", "idle"),
}
"""Where a process may end: between any two steps."""

DAY_MS = 86_400_000


def tell(seeds: range, *kinds: str) -> list[Story]:
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
    ended = {place for story in all_stories() for place in story.places}
    for seed in range(60):
        if not ended >= PLACES:
            ended.update(Simulation(seed, 3, ["crash"]).run().places)
    assert ended >= PLACES, f"nobody ended at {sorted(PLACES - ended)}"


# ---- one kind of fault


def test_nothing_acknowledged_is_lost_and_nothing_torn_by_crashes() -> None:
    tell(range(100, 110), "crash", "loss", "duplication")


def test_segments_arrive_in_any_order_and_often() -> None:
    tell(range(110, 116), "loss", "duplication", "reordering", "delay")


def test_cut_links_heal() -> None:
    tell(range(120, 126), "partition", "loss")


def test_what_the_departed_gave_to_one_all_get() -> None:
    tell(range(130, 136), "departure", "partition", "loss")


def test_time_releases_what_the_clock_guard_held() -> None:
    assert any(story.held for story in tell(range(140, 148), "skew"))


def test_a_restored_instance_gets_its_own_log_back_before_it_signs() -> None:
    tell(range(150, 158), "restore", "loss")


def test_a_hostile_instance_changes_nothing_for_the_others() -> None:
    tell(range(160, 168), *(kind for kind in HOSTILE if kind != "fork"))


@pytest.mark.xfail(not STORES_FORKS, strict=True, reason="the second branch is refused where the first is, so they never agree (R4.4)")
def test_honest_instances_agree_beside_a_fork() -> None:
    tell(range(170, 176), "fork", "loss")


@pytest.mark.xfail(not STORES_FORKS, strict=True, reason="it signs anew what it had signed before: a fork (R4.6)")
def test_honest_instances_agree_beside_one_that_forgot() -> None:
    tell(range(180, 186), "amnesia")


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


# ---- what the store does with a bad author, at the lowest layer that can show it


MEMBERS = federation(3)


def a_peer(name: str) -> Peer:
    return Peer(MEMBERS.authority, MEMBERS.instance(name).author, MEMBERS.keys[name].sign)


def a_segment(tip: Tip, stamp_ms: int, deps: list[Dep]) -> tuple[bytes, Tip]:
    """The next segment of cms."""
    charter, author = MEMBERS.charter, MEMBERS.instance("cms").author
    (segment,) = build_changeset(
        [ACKNOWLEDGE],
        federation=charter.federation,
        charter_version=charter.version,
        author=author,
        tip=tip,
        stamp=Stamp(stamp_ms, 0),
        deps=deps,
        sign=MEMBERS.keys["cms"].sign,
    )
    return segment.frame, Tip(segment.header.last, segment.hash, segment.header.stamp, 0)


def test_the_second_branch_of_a_fork_does_not_pass_for_the_first() -> None:
    peer = a_peer("atlas")
    one, other = (a_segment(EMPTY, stamp_ms, [])[0] for stamp_ms in (1, 2))
    assert peer.receive([one], "cms") == (1, ())
    assert peer.receive([one], "cms") == (0, ())
    receipt = peer.receive([other], "cms")
    assert (receipt.stored, len(receipt.rejected)) == ((1, 0) if STORES_FORKS else (0, 1))


def test_whoever_stored_a_segment_has_it_after_a_crash() -> None:
    peer = a_peer("atlas")
    frame, tip = a_segment(EMPTY, 1, [])
    peer.receive([frame], "cms")
    peer.kill()
    assert [(head.seq, head.hash) for head in peer.heads()] == [(tip.seq, tip.hash)]
    assert decode_frame(peer.rows()[0].frame).hash == tip.hash


@pytest.mark.xfail(strict=True, reason="what comes after the refusal is stored as waiting; what was there already is refused with it")
def test_what_follows_a_refused_changeset_fares_the_same_in_any_order() -> None:
    bad, tip = a_segment(EMPTY, 1, [])
    worse, tip = a_segment(tip, 2, [Dep(MEMBERS.instance("cms").author, 1, tip.hash)])
    after, _ = a_segment(tip, 3, [])
    at_once, one_by_one = a_peer("atlas"), a_peer("belle2")
    at_once.receive([bad, worse, after], "cms")
    for frame in (bad, worse, after):
        one_by_one.receive([frame], "cms")
        one_by_one.work(DAY_MS, changesets_max=9)
    at_once.work(DAY_MS, changesets_max=9)
    assert [row.state for row in at_once.rows()] == [row.state for row in one_by_one.rows()]
