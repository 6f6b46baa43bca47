"""Back-off: bounded, growing, spread, ended by one success; and never a hot loop."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nsync.transport.peers import BACKOFF_MS_FIRST, BACKOFF_MS_MAX, BACKOFF_MS_MIN, CALLED_MS_MIN, PeerState

randoms = st.integers().map(random.Random)


def failing(times: int, rng: random.Random, now_ms: int = 0) -> PeerState:
    state = PeerState("p")
    for _ in range(times):
        state = state.failed(now_ms, "down", rng)
    return state


@given(st.integers(1, 5000), st.integers(0, 1 << 60), randoms)
def test_every_pause_is_bounded(times: int, now_ms: int, rng: random.Random) -> None:
    state = failing(times, rng, now_ms)
    assert state.failures == times
    assert BACKOFF_MS_MIN <= state.pause_ms(now_ms) <= min(BACKOFF_MS_MAX, BACKOFF_MS_FIRST << min(times - 1, 20))


@given(randoms)
def test_pauses_are_spread_over_the_whole_range(rng: random.Random) -> None:
    pauses = [failing(20, rng).pause_ms(0) for _ in range(200)]
    assert min(pauses) < BACKOFF_MS_MAX / 4 and max(pauses) > BACKOFF_MS_MAX * 3 / 4


def test_a_peer_that_is_down_for_an_hour_is_tried_some_hundred_times() -> None:
    rng, now_ms, state = random.Random(1), 0, PeerState("p")
    while now_ms < 3_600_000:
        state = state.failed(now_ms, "down", rng)
        now_ms = state.next_try_ms
    assert 90 < state.failures < 180
    assert state.since_ms == 0


@given(st.integers(1, 50), st.integers(0, 1 << 40), randoms)
def test_one_success_ends_it_and_the_next_row_begins_anew(times: int, now_ms: int, rng: random.Random) -> None:
    healthy = failing(times, rng, now_ms).answered(now_ms + 5).succeeded(now_ms + 5)
    assert healthy == PeerState("p", last_contact_ms=now_ms + 5, next_try_ms=now_ms + 5)
    assert healthy.pause_ms(now_ms + 5) == 0
    again = healthy.failed(now_ms + 9, "down again", rng)
    assert (again.failures, again.since_ms, again.reason, again.last_contact_ms) == (1, now_ms + 9, "down again", now_ms + 5)
    assert again.pause_ms(now_ms + 9) <= BACKOFF_MS_FIRST


@given(st.lists(st.sampled_from(["answered", "succeeded", "failed"])), randoms)
def test_a_reason_is_there_exactly_while_it_fails(events: list[str], rng: random.Random) -> None:
    state = PeerState("p")
    for now_ms, event in enumerate(events):
        if event == "answered":
            state = state.answered(now_ms)
        elif event == "succeeded":
            state = state.succeeded(now_ms)
        else:
            state = state.failed(now_ms, "down", rng)
        assert bool(state.failures) == bool(state.reason) == (state.since_ms is not None)
        assert not (state.pause_ms(now_ms) and not state.failures)


@given(st.integers(1, 50), randoms)
def test_a_call_ends_a_pause_of_silence_now_and_then(times: int, rng: random.Random) -> None:
    silent = failing(times, rng).failed(0, "down", rng, silent=True)
    called = silent.called(5)
    assert called.pause_ms(5) == 0
    assert (called.failures, called.since_ms, called.reason) == (times + 1, 0, "down"), "its history stays"
    again = called.failed(6, "down", rng, silent=True)
    assert again.called(4 + CALLED_MS_MIN) is again
    assert again.called(5 + CALLED_MS_MIN).pause_ms(5 + CALLED_MS_MIN) == 0
    spoke = again.failed(7, "refused", rng)
    assert spoke.called(7 + CALLED_MS_MIN) is spoke, "it is not silence that keeps the two apart"
    assert PeerState("p").called(5) == PeerState("p")


def test_a_new_peer_is_tried_at_once() -> None:
    assert PeerState("p").pause_ms(0) == 0
