"""The register of pulls: an author is asked of one peer at a time, all that are well get a share, and no claim outlives its use."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nsync.transport.pulls import LEASE_MS, REST_MS, SHARE_OPS_MIN, Pulls

AUTHORS = [bytes([number]) * 16 for number in range(1, 13)]
MUCH = dict.fromkeys(AUTHORS, SHARE_OPS_MIN)


def register(helpers: int = 3) -> tuple[Pulls, list[int]]:
    given_back: list[int] = []
    return Pulls(lambda: helpers, lambda: given_back.append(1)), given_back


def test_little_is_claimed_whole() -> None:
    pulls, _ = register()
    assert pulls.claim("a", dict.fromkeys(AUTHORS, 10), 0) == set(AUTHORS)
    assert pulls.claim("b", dict.fromkeys(AUTHORS, 10), 0) == set()


def test_much_is_shared() -> None:
    pulls, given_back = register()
    shares = [pulls.claim(peer, MUCH, 0) for peer in "abc"]
    assert [len(share) for share in shares] == [4, 4, 4] and set().union(*shares) == set(AUTHORS)
    assert pulls.claim("d", MUCH, 0) == set()
    pulls.give_back("b", shares[1])
    assert given_back == [1]
    assert pulls.claim("d", MUCH, 0) == shares[1]


def test_with_one_peer_there_is_one_question() -> None:
    assert register(1)[0].claim("a", MUCH, 0) == set(AUTHORS)
    assert register(0)[0].claim("a", MUCH, 0) == set(AUTHORS), "none is known to be well"


def test_what_was_asked_for_longest_ago_comes_first() -> None:
    pulls, _ = register(12)
    order = []
    for _ in range(24):
        (author,) = claimed = pulls.claim("a", MUCH, 0)
        order.append(author)
        pulls.give_back("a", claimed)
    assert order == AUTHORS * 2


def test_a_claim_that_brings_nothing_is_taken_over() -> None:
    pulls, given_back = register(1)
    claimed = pulls.claim("a", MUCH, 0)
    assert pulls.renew("a", claimed, claimed, 5)
    assert pulls.claim("b", MUCH, 4 + LEASE_MS) == set()
    assert pulls.renew("a", claimed, claimed, 6 + LEASE_MS), "nobody wanted it in the meantime"
    assert pulls.claim("b", MUCH, 6 + 2 * LEASE_MS) == claimed
    assert not pulls.renew("a", claimed, claimed, 6 + 2 * LEASE_MS)
    pulls.give_back("a", claimed)
    assert given_back == [] and pulls.claim("c", MUCH, 6 + 2 * LEASE_MS) == set(), "what a gives back is not a's any more"


def test_what_comes_of_one_author_renews_the_claim_on_no_other() -> None:
    pulls, _ = register(1)
    claimed = pulls.claim("a", MUCH, 0)
    own, others = set(AUTHORS[:1]), set(AUTHORS[1:])
    assert pulls.renew("a", claimed, own, LEASE_MS - 1)
    assert pulls.claim("b", MUCH, LEASE_MS) == others
    assert pulls.renew("a", claimed, own, LEASE_MS), "it goes on with what is still its"
    assert not pulls.renew("a", claimed, others, LEASE_MS), "and stops when that of the others comes"
    assert not pulls.renew("a", claimed, (), LEASE_MS), "or nothing new"


def test_an_author_that_waits_here_rests() -> None:
    pulls, _ = register(1)
    claimed = pulls.claim("a", MUCH, 0)
    pulls.rest(AUTHORS[:3], 0)
    pulls.give_back("a", claimed)
    assert pulls.claim("b", MUCH, REST_MS - 1) == set(AUTHORS[3:])
    assert pulls.claim("c", MUCH, REST_MS) == set(AUTHORS[:3])


@given(st.integers(0, 1 << 30), st.integers(1, 5))
def test_no_author_is_ever_asked_of_two(seed: int, helpers: int) -> None:
    """As long as claims are renewed in time; and when all is given back all can be claimed."""
    rng, (pulls, _) = random.Random(seed), register(helpers)
    held: dict[str, set[bytes]] = {peer: set() for peer in "abcd"}
    now_ms = 0
    for _ in range(60):
        peer = rng.choice("abcd")
        if held[peer] and rng.randrange(2):
            pulls.give_back(peer, held.pop(peer))
            held[peer] = set()
        elif not held[peer]:
            missing = {author: rng.randint(1, 3 * SHARE_OPS_MIN) for author in rng.sample(AUTHORS, rng.randint(1, 12))}
            held[peer] = pulls.claim(peer, missing, now_ms)
            assert held[peer] <= set(missing)
        now_ms += rng.randrange(LEASE_MS)
        assert all(pulls.renew(one, claimed, claimed, now_ms) for one, claimed in held.items())
        assert sum(map(len, held.values())) == len(set().union(*held.values()))
    for peer, claimed in held.items():
        pulls.give_back(peer, claimed)
    assert pulls.claim("e", dict.fromkeys(AUTHORS, 1), now_ms) == set(AUTHORS)
