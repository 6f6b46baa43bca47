"""Notices: what is believed, what is kept of whatever anybody sends, and that two who tell each other what they have end with the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Optional

import pytest

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import AuthorId, Place
from nsync.clock import Stamp
from nsync.errors import ProtocolError, RejectedSegment
from nsync.log import notices
from nsync.log.floor import HEADS_MAX, Floor, Vote, sign_vote
from nsync.log.forks import prove
from nsync.log.lease import Lack, SignedHead, Watch, decode_head, encode_head, is_due, overdue, sign_head
from nsync.log.notices import FLOOR, FORK, FORKS_MAX, HEAD, TWICE, Notice, Stand
from nsync.log.segment import EMPTY, NO_HASH, Dep, Segment, Tip, build_changeset
from nsync.log.stored import REFUSED_TOLD_MAX, Head
from nsync.namespace import codec
from nsync.namespace.keys import Did, Identity
from nsync.namespace.ops import ACKNOWLEDGE, VERBS, Assert, Grant, Revoke, encode_grant, encode_op, encode_revoke
from nsync.store import schema
from nsync.store.log import SqlLog
from nsync.store.notary import Notary
from nsync.testing.federation import federation
from nsync.transport import notices as messages
from tests.support.notary import Notaries, tell

MEMBERS = federation(4)
NAMES = tuple(MEMBERS.keys)
FEDERATION = MEMBERS.charter.federation
NOW_MS = 1_700_000_000_000
LEASE_MS = 900_000
BYTES_MAX = messages.SENT_BYTES_MAX


def author(name: str) -> AuthorId:
    return MEMBERS.instance(name).author


def segment(name: str, tip: Tip = EMPTY, ms: int = NOW_MS, ops: Sequence[bytes] = (ACKNOWLEDGE,), deps: Sequence[Dep] = ()) -> Segment:
    (made,) = build_changeset(
        ops,
        federation=FEDERATION,
        charter_version=1,
        author=author(name),
        tip=tip,
        stamp=Stamp(ms, 0),
        deps=deps,
        sign=MEMBERS.keys[name].sign,
    )
    return made


def end(made: Segment) -> Tip:
    return Tip(made.header.last, made.hash, made.header.stamp, 0)


def dep(made: Segment) -> Dep:
    return Dep(made.header.author, made.header.last, made.hash)


def head(name: str, seq: int = 0, ms: int = NOW_MS, hash_: bytes = b"h" * 16, key: Optional[SigningKey] = None) -> SignedHead:
    return sign_head(FEDERATION, author(name), Place(seq, hash_ if seq else NO_HASH), ms, (key or MEMBERS.keys[name]).sign)


def floor(number: int = 1, seq: int = 1, live: bytes = b"l" * 16) -> Floor:
    return Floor(number, 1, (Dep(author("atlas"), seq, b"h" * 16),), live)


def vote(name: str, what: Floor, key: Optional[SigningKey] = None) -> Vote:
    return sign_vote(FEDERATION, author(name), what, (key or MEMBERS.keys[name]).sign)


def votes(what: Floor, *names: str) -> list[Vote]:
    return [vote(name, what) for name in names]


def fork(name: str = "atlas", seed: int = 0, tip: Tip = EMPTY) -> Notice:
    one, other = (segment(name, tip, NOW_MS + seed * 10 + i) for i in (1, 2))
    return Notice(FORK, codec.encode(tuple(prove(one.header_bytes, one.signature, other.header_bytes, other.signature))))


class Site(Notaries):
    """One instance of this federation."""

    def __init__(self, name: str) -> None:
        super().__init__(MEMBERS.authority, name, MEMBERS.keys[name].sign, NOW_MS)


# ---- what is believed


def test_every_kind_comes_through_its_bytes_as_it_was_said() -> None:
    said = head("cms", 5)
    assert notices.check(notices.head_notice(said), MEMBERS.charter, verify) == said
    one, other = vote("cms", floor()), vote("cms", floor(seq=2))
    assert notices.check(notices.vote_notice([one]), MEMBERS.charter, verify) == notices.Votes((one,))
    twice = notices.check(notices.vote_notice([one, other]), MEMBERS.charter, verify)
    assert isinstance(twice, notices.Votes) and set(twice.votes) == {one, other}
    three = votes(floor(), *NAMES[:3])
    decided = notices.check(notices.floor_notice(three), MEMBERS.charter, verify)
    assert isinstance(decided, notices.Votes) and set(decided.votes) == set(three)
    proven = notices.check(fork("dune"), MEMBERS.charter, verify)
    assert isinstance(proven, notices.Fork) and (proven.header.author, proven.header.first) == (author("dune"), 1)


STRANGER = SigningKey(b"s" * 32)


@pytest.mark.parametrize(
    ("notice", "text"),
    [
        (notices.head_notice(head("cms", 5, key=STRANGER)), "signature is not that of author"),
        (notices.head_notice(head("cms", 5)._replace(ms=NOW_MS + 1)), "signature is not that of author"),
        (notices.vote_notice([vote("cms", floor(), key=STRANGER)]), "signature is not that of author"),
        (notices.floor_notice(votes(floor(), "atlas", "cms")), "no more than two thirds"),
        (notices.vote_notice([vote("cms", floor()._replace(term=2))]), "its term is version 2"),
        (notices.floor_notice(votes(floor()._replace(term=0), *NAMES)), "has no term"),
        (notices.floor_notice(votes(floor()._replace(term=2), *NAMES)), "its term is version 2"),
        (notices.floor_notice([*votes(floor(), "atlas", "cms"), vote("dune", floor(), key=STRANGER)]), "signature is not that"),
        (notices.floor_notice([*votes(floor(), "atlas", "cms"), vote("cms", floor())]), "no more than two thirds"),
        (Notice(TWICE, codec.encode((notices.vote_notice(votes(floor(), "cms")).raw,) * 2)), "prove nothing"),
        (Notice(TWICE, codec.encode(tuple(notices.vote_notice([v]).raw for v in votes(floor(), "cms", "dune")))), "prove nothing"),
        (Notice(HEAD, notices.head_notice(head("cms")).raw + b"\x00"), "canonical"),
        (Notice(FORK, fork().raw[:-1]), "canonical"),
        (Notice(FORK, codec.encode((b"", b"", b""))), "two headers"),
        (Notice(9, b""), "of kind 9"),
        (Notice(FLOOR, bytes(notices.NOTICE_BYTES_MAX + 1)), "at most"),
        (Notice(FLOOR, codec.encode((1, 1, (), b"l" * 16, ()))), "no more than two thirds"),
        (Notice(FLOOR, codec.encode(("1", 1, ((1, 2),), b"", ((b"", b""),)))), "author with a signature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_proves_nothing_is_refused(notice: Notice, text: str) -> None:
    with pytest.raises(RejectedSegment, match=text):
        notices.check(notice, MEMBERS.charter, verify)


def decided(what: Floor, signed: Sequence[tuple[bytes, bytes]]) -> Notice:
    return Notice(FLOOR, codec.encode((what.number, what.term, tuple(map(tuple, what.heads)), what.live, tuple(signed))))


LARGE = Floor(1, 1, tuple(Dep(AuthorId(n.to_bytes(16, "big")), 1, b"h" * 16) for n in range(HEADS_MAX)), b"l" * 16)
GIVEN = sorted((v.author, v.signature) for v in votes(LARGE, *NAMES))


@pytest.mark.parametrize(
    ("signed", "text", "checks"),
    [
        (GIVEN, None, len(NAMES)),
        ([(author("cms"), vote("cms", LARGE).signature)] * 4096, "two of one author", 0),
        (GIVEN[::-1], "unsorted", 0),
        (GIVEN[:2], "two thirds", 0),
        ([(bytes([n >> 8, n & 255]) * 8, GIVEN[0][1]) for n in range(4096)], "two thirds", 0),
        (sorted([*GIVEN, (b"\xff" * 16, bytes(64))]), "have none", 0),
        ([(GIVEN[0][0], bytes(64)), *GIVEN[1:]], "signature is not that", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_floor_costs_no_more_checks_than_it_has_voters(signed: Sequence[tuple[bytes, bytes]], text: Optional[str], checks: int) -> None:
    asked: list[bytes] = []

    def counted(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
        asked.append(public)
        return verify(public, purpose, message, signature)

    if text is None:
        notices.check(decided(LARGE, signed), MEMBERS.charter, counted)
    else:
        with pytest.raises(RejectedSegment, match=text):
            notices.check(decided(LARGE, signed), MEMBERS.charter, counted)
    assert len(asked) == checks


def test_floors_that_are_known_or_come_out_of_turn_cost_no_checks() -> None:
    site = Site("atlas")
    asked: list[bytes] = []

    def counted(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
        asked.append(public)
        return verify(public, purpose, message, signature)

    notary = Notary(site, MEMBERS.keys["atlas"].sign, counted, lambda: NOW_MS, lambda taken, sender: None)
    one, two, three = (notices.floor_notice(votes(floor(number, number), *NAMES[:3])) for number in (1, 2, 3))
    for sent, checks in (([one] * 50, 3), ([one, three] * 50, 0), ([two, three] * 50, 6)):
        asked.clear()
        notary.take(sent, "cms")
        assert len(asked) == checks
    assert notary.stand().decided == 3


def test_what_is_refused_opens_no_transaction_and_fills_no_log() -> None:
    site = Site("atlas")
    before = site.begun
    bad = [Notice(HEAD, bytes([n])) for n in range(50)]
    assert site.notary.take(bad, "cms") == 0 == site.begun - before
    assert len(site.said) == REFUSED_TOLD_MAX + 1 and "refused 42 more that cms brought" in site.said[-1]
    assert site.notary.take([*bad[:1], notices.head_notice(head("cms", 5))], "cms") == 0 and site.begun - before == 1
    assert len(site.held()) == 1 and len(site.said) == REFUSED_TOLD_MAX + 2


def test_a_head_of_another_federation_is_refused() -> None:
    other = federation(3)
    raw = encode_head(sign_head(other.charter.federation, author("cms"), Place(0, NO_HASH), NOW_MS, MEMBERS.keys["cms"].sign))
    with pytest.raises(RejectedSegment, match="of another federation"):
        decode_head(raw, MEMBERS.charter, verify)


def test_the_same_word_under_another_signature_is_the_same_notice() -> None:
    said = head("cms", 5)
    assert notices.id_of_head(said) == notices.id_of_head(said._replace(signature=bytes(64)))
    given = vote("cms", floor())
    assert notices.id_of_votes([given]) == notices.id_of_votes([given._replace(signature=bytes(64))])


# ---- messages


WORD = messages.Word(Stand(3, (b"\x01" * 8, b"\x02" * 8)), (notices.head_notice(head("cms")),))


@pytest.mark.parametrize(
    "fields",
    [
        (1, b""),
        (-1, b"", ()),
        (1 << 32, b"", ()),
        (True, b"", ()),
        (1, b"1234567", ()),
        (1, b"\x02" * 8 + b"\x01" * 8, ()),
        (1, b"\x01" * 16, ()),
        (1, "", ()),
        (1, b"", b""),
        (1, b"", ((1,),)),
        (1, b"", ((1, "x"),)),
        (1, b"", ((0, b"x"),)),
        (1, b"", ((True, b"x"),)),
        (1, b"\x01" * 8 * (messages.IDS_MAX + 1), ()),
    ],
)
def test_messages_that_break_a_rule(fields: Any) -> None:
    with pytest.raises(ProtocolError, match="notices"):
        messages.decode(codec.encode(fields))


def test_a_message_says_what_it_was_made_of_and_nothing_longer_is_read() -> None:
    raw = messages.encode(WORD)
    assert messages.decode(raw) == WORD
    for broken in (raw[:-1], raw + b"\x00", b"", bytes(messages.NOTICES_BYTES_MAX + 1)):
        with pytest.raises(ProtocolError, match="notices"):
            messages.decode(broken)


def test_the_first_message_of_ten_members_in_order_is_small() -> None:
    site = Site("atlas")
    site.notary.take([notices.head_notice(head(name, 9)) for name in NAMES], "cms")
    assert len(messages.encode(messages.first(site.notary.stand()))) <= 8 * len(NAMES) + 8


# ---- exchange


def test_two_who_exchange_have_the_same_within_two_round_trips() -> None:
    atlas, cms = Site("atlas"), Site("cms")
    atlas.notary.take([notices.head_notice(head("dune", 4)), fork("belle2"), notices.vote_notice(votes(floor(), "dune"))], "dune")
    cms.notary.take([notices.head_notice(head("dune", 7, NOW_MS + 1)), notices.head_notice(head("belle2")), fork("dune")], "dune")
    assert tell(atlas, cms) == 2
    assert atlas.notary.stand() == cms.notary.stand()
    assert len(atlas.notary.stand().ids) == 5
    assert tell(atlas, cms) == 1, "nothing more to say"


def test_who_was_away_gets_every_floor() -> None:
    atlas, cms = Site("atlas"), Site("cms")
    for number in range(1, 8):
        assert atlas.notary.take([notices.floor_notice(votes(floor(number, number), *NAMES[:3]))], "") == 3
    atlas.notary.take([notices.vote_notice([vote("cms", floor(8, 8))])], "")
    tell(cms, atlas)
    assert atlas.notary.stand() == cms.notary.stand() and cms.notary.stand().decided == 7


def test_a_message_that_is_full_is_gone_on_with_the_next_time() -> None:
    atlas, cms = Site("atlas"), Site("cms")
    for number in range(1, 8):
        atlas.notary.take([notices.floor_notice(votes(floor(number, number), *NAMES[:3]))], "")
    for number in range(1, 8):
        (sent,) = atlas.notary.lacked(cms.notary.stand(), 1)
        assert cms.notary.take([sent], "atlas") == 3 and cms.notary.stand().decided == number


@pytest.mark.parametrize("seed", range(40))
def test_whoever_meets_in_whatever_order_ends_with_the_same(seed: int) -> None:
    """dune votes for everything, which is fewer than a third of them; cms forks in every place; all sign many heads."""
    rng = random.Random(seed)
    sites = [Site(name) for name in NAMES]
    said = [notices.head_notice(head(name, rng.randint(0, 9), NOW_MS + rng.randint(0, 9))) for name in NAMES for _ in range(3)]
    said += [notices.vote_notice([vote(name, floor(seq=rng.randint(1, 2)))]) for name in NAMES if name != "dune"]
    said += [notices.vote_notice([vote("dune", floor(seq=n))]) for n in (1, 2, 3)]
    tip = EMPTY
    for index in range(3):
        said += [fork("cms", index, tip), fork("cms", index + 10, tip)]
        tip = end(segment("cms", tip))
    for notice in said:
        rng.choice(sites).notary.take([notice], "")
    for _ in range(30):
        tell(*rng.sample(sites, 2))
    for one in sites:
        for other in sites:
            if one is not other:
                tell(one, other)
    stands = {site.notary.stand() for site in sites}
    assert len(stands) == 1, stands


# ---- what is kept


def test_the_newest_head_of_each_author_is_kept_and_none_from_the_future() -> None:
    site = Site("atlas")
    for said in (head("cms", 3), head("cms", 2, NOW_MS - 1), head("cms", 4, NOW_MS + 1), head("cms", 9, NOW_MS + 60_001), head("dune", 0)):
        site.notary.take([notices.head_notice(said)], "")
    assert sorted((h.author, h.place.seq) for h in site.held()) == sorted([(author("cms"), 4), (author("dune"), 0)])


def proofs(count: int) -> list[Notice]:
    """That cms signed two histories, from ever later places on."""
    found, tip = [], EMPTY
    for index in range(count):
        found.append(fork("cms", index, tip))
        tip = end(segment("cms", tip))
    return found


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("seed", [None, 1])
def test_the_earliest_proofs_are_kept_in_whatever_order_they_come(seed: Optional[int], together: bool) -> None:
    site, early = Site("atlas"), Site("atlas")
    found = proofs(FORKS_MAX + 10)
    early.notary.take(found[:FORKS_MAX], "")
    sent = found[::-1] if seed is None else random.Random(seed).sample(found, len(found))
    for some in [sent] if together else [[one] for one in sent]:
        site.notary.take(some, "")
    assert site.notary.stand() == early.notary.stand()
    with site.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM nsync_fork").scalar() == FORKS_MAX


def test_a_member_fills_no_store() -> None:
    site = Site("atlas")
    for one in proofs(FORKS_MAX + 10):
        site.notary.take([one], "")
    site.notary.take([notices.head_notice(head("cms", n, NOW_MS + n)) for n in range(1, 100)], "")
    site.notary.take([notices.vote_notice([vote("cms", floor(n, 1))]) for n in range(1, 100)], "")
    site.notary.take([notices.vote_notice([vote("cms", floor(1, n))]) for n in range(1, 100)], "")
    with site.engine.connect() as connection:
        tables = ("nsync_fork", "nsync_signed_head", "nsync_vote")
        rows = [connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() for table in tables]
    assert rows == [FORKS_MAX, 1, 2]


def test_votes_of_those_who_have_none_are_not_kept() -> None:
    site = Site("atlas")
    site.notary.take([notices.vote_notice(votes(floor(2), "cms"))], "")
    with site.engine.connect() as connection:
        assert connection.execute(schema.vote.select()).all() == [], "there is no floor 1 yet"


def test_a_floor_is_decided_though_one_of_its_voters_voted_for_others_before() -> None:
    """dune shows some three votes: who has kept two others must still take the one that decides."""
    site = Site("atlas")
    site.notary.take([notices.vote_notice([vote("dune", floor(seq=n))]) for n in (7, 8)], "")
    site.notary.take([notices.vote_notice([v]) for v in votes(floor(), "atlas", "cms")], "")
    assert site.notary.stand().decided == 0
    site.notary.take([notices.floor_notice(votes(floor(), "atlas", "cms", "dune"))], "")
    assert site.notary.stand().decided == 1
    assert any("floor 1 is decided" in text for text in site.said)


# ---- forks


def test_a_fork_of_which_one_history_is_here_is_said_and_changes_no_reading() -> None:
    site = Site("atlas")
    one, other = (segment("cms", ms=NOW_MS + i, ops=[encode_op([Assert(Did("cms", f"c{i}"), Identity("C"))])]) for i in (1, 2))
    site.store(one)
    with site.engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT * FROM nsync_entry ORDER BY key").all()
        line = SqlLog(connection, site.authority).lines.line(author("cms"))
    site.notary.take(
        [Notice(FORK, codec.encode(tuple(prove(one.header_bytes, one.signature, other.header_bytes, other.signature))))], "dune"
    )
    assert any("cms has signed two histories from 1 on, and only 1 of them" in text for text in site.said)
    with site.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM nsync_entry ORDER BY key").all() == before
        assert SqlLog(connection, site.authority).lines.line(author("cms")) == line


# ---- votes


def proposed(site: Site, *heads: Segment) -> Notice:
    """What atlas would sign as number 1, had it the ends of `heads` and no conscience: the digest is the one that `site` finds."""
    with site.engine.connect() as connection:
        live = SqlLog(connection, site.authority).live_of({one.header.author: one.header.last for one in heads})
    return notices.vote_notice([vote("atlas", Floor(1, 1, tuple(sorted(map(dep, heads))), live))])


def test_a_vote_is_given_once_whatever_is_proposed_after_it() -> None:
    site = Site("cms")
    one = segment("dune")
    two = segment("dune", end(one))
    site.store(one, two)
    site.notary.take([proposed(site, one)], "atlas")
    assert site.notary.tend().voted == Floor(1, 1, (dep(one),), site.votes()[0].floor.live)
    assert site.notary.tend().voted is None
    site.notary.take([proposed(site, two)], "atlas")
    assert site.notary.tend().voted is None
    assert [given.floor.seq(author("dune")) for given in site.votes() if given.author == author("cms")] == [1]


def test_of_two_proposals_none_gets_a_vote() -> None:
    site = Site("cms")
    one = segment("dune")
    two = segment("dune", end(one))
    site.store(one, two)
    site.notary.take([proposed(site, one), proposed(site, two)], "atlas")
    assert site.notary.tend().voted is None


def test_who_signs_nothing_more_votes_for_nothing_more() -> None:
    site = Site("cms")
    one = segment("dune")
    site.store(one)
    site.notary.take([proposed(site, one), notices.head_notice(head("cms", 9))], "atlas")
    assert site.read_only() is not None and site.notary.tend().voted is None


def test_a_head_that_leaves_out_what_it_has_seen_gets_no_vote() -> None:
    site = Site("cms")
    one = segment("dune")
    two = segment("atlas", ms=NOW_MS + 1, deps=[dep(one)])
    site.store(one, two)
    site.notary.take([proposed(site, two)], "atlas")
    assert site.notary.tend().voted is None
    other = Site("cms")
    other.store(one, two)
    other.notary.take([proposed(other, one, two)], "atlas")
    assert other.notary.tend().voted is not None


def test_a_head_within_a_changeset_gets_no_vote() -> None:
    site = Site("cms")
    made = list(
        build_changeset(
            [ACKNOWLEDGE] * 4097,
            federation=FEDERATION,
            charter_version=1,
            author=author("dune"),
            tip=EMPTY,
            stamp=Stamp(NOW_MS, 0),
            deps=[],
            sign=MEMBERS.keys["dune"].sign,
        )
    )
    site.store(*made)
    site.notary.take([proposed(site, made[0])], "atlas")
    assert len(made) == 2 and site.notary.tend().voted is None


def test_a_guest_who_proposes_gives_no_effect_to_what_it_said_after_its_right_had_ended() -> None:
    """dune grants atlas a right and takes it back; atlas says something that the revocation has not seen, and proposes a floor between."""
    granted = segment("dune", ops=[encode_grant(Grant("atlas", "dune.open", "", VERBS, None))])
    revoked = segment("dune", end(granted), NOW_MS + 1, [encode_revoke(Revoke(author("dune"), 1))])
    late = segment("atlas", ms=NOW_MS + 2, ops=[encode_op([Assert(Did("dune.open", "c1"), Identity("C"))])], deps=[dep(granted)])
    ignorant, knows = Site("belle2"), Site("cms")
    ignorant.store(granted, late)
    knows.store(granted, late, revoked)
    floor_of_a_liar = proposed(ignorant, granted, late)
    for site in (ignorant, knows):
        site.notary.take([floor_of_a_liar], "atlas")
    assert ignorant.notary.tend().voted is not None, "it cannot know"
    assert knows.notary.tend().voted is None
    whole = Site("cms")
    whole.store(granted, late, revoked)
    whole.notary.take([proposed(whole, revoked, late)], "atlas")
    assert whole.notary.tend().voted is not None, "with the revocation below the floor it stays void"


# ---- signed heads


def test_a_head_is_signed_when_the_log_grows_and_before_the_lease_ends() -> None:
    site = Site("atlas")
    assert site.notary.tend().signed and not site.notary.tend().signed
    site.publish()
    assert site.notary.tend().signed and not site.notary.tend().signed
    site.now_ms += LEASE_MS // 3 + 1
    assert site.notary.tend().signed
    assert [(h.author, h.place.seq, h.ms) for h in site.held()] == [(author("atlas"), 1, site.now_ms)]


def test_a_head_is_newer_than_the_one_before_though_the_clock_went_back() -> None:
    site = Site("atlas")
    site.notary.tend()
    site.now_ms -= 50_000
    site.publish()
    site.notary.tend()
    assert [(h.place.seq, h.ms) for h in site.held()] == [(1, NOW_MS + 1)]


def test_ones_own_head_that_is_not_in_ones_own_log_ends_the_signing() -> None:
    """A restored database hears of its own future from a small notice, before any segment."""
    site, other = Site("atlas"), Site("cms")
    site.publish()
    site.notary.tend()
    tell(site, other)
    restored = Site("atlas")
    tell(other, restored)
    assert "nothing more is signed here" in (restored.read_only() or "")
    assert any("nothing more is published here" in text for text in restored.said)
    assert site.read_only() is None
    tell(other, site)
    assert site.read_only() is None, "what it has it may hear of"
    restored.now_ms += LEASE_MS
    assert not restored.notary.tend().signed


def test_a_lease_that_is_over_is_known_of_present_authors_only() -> None:
    heads = [head("cms", 3, NOW_MS - LEASE_MS - 1), head("dune", 3, NOW_MS - LEASE_MS)]
    assert overdue(heads, MEMBERS.charter, LEASE_MS, NOW_MS) == {"cms": LEASE_MS + 1}


def test_due() -> None:
    held = head("cms", 3)
    assert not is_due(held, held.place, LEASE_MS, NOW_MS + LEASE_MS // 3 - 1)
    assert is_due(held, held.place, LEASE_MS, NOW_MS + LEASE_MS // 3)
    assert is_due(held, Place(4, b"x" * 16), LEASE_MS, NOW_MS) and is_due(None, held.place, LEASE_MS, NOW_MS)


def test_who_does_not_come_after_what_was_said_a_lease_ago_is_told() -> None:
    watch = Watch(LEASE_MS)
    cms = author("cms")

    def asked(seq: int) -> dict[Any, Lack]:
        return watch.asked("dune", [Head(cms, seq, b"x" * 16)])

    watch.learn([head("cms", 10)], NOW_MS)
    assert asked(5) == {} == asked(5), "it was said just now"
    watch.learn([head("cms", 20)], NOW_MS + LEASE_MS + 1)
    assert asked(5) == {}, "it may have been away"
    assert asked(7) == {}, "it is coming"
    assert asked(7) == {cms: Lack(7, 10)}
    assert asked(10) == {} == asked(10)
    watch.learn([head("cms", 30)], NOW_MS + 2 * LEASE_MS + 2)
    asked(10)
    assert asked(10) == {cms: Lack(10, 20)}
    assert watch.asked("atlas", []) == {} and watch.asked("atlas", []) == {cms: Lack(0, 20)}
