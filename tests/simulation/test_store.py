"""What an instance's store does with an author who lies: the steps of stories, one by one, at the lowest layer that can show them."""

from __future__ import annotations

from collections.abc import Sequence

from nsync.authority.charter import Place
from nsync.clock import Stamp
from nsync.log.segment import EMPTY, Dep, Tip, build_changeset
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Did, Identity
from nsync.namespace.ops import ACKNOWLEDGE, Assert, encode_op
from nsync.testing.federation import amended, federation
from nsync.testing.peer import Peer

MEMBERS = federation(3)
DAY_MS = 86_400_000


def a_peer(name: str) -> Peer:
    return Peer(MEMBERS.authority, MEMBERS.instance(name).author, MEMBERS.keys[name].sign)


def a_segment(author: str, tip: Tip, stamp_ms: int, deps: Sequence[Dep] = (), op: bytes = ACKNOWLEDGE) -> tuple[bytes, Tip]:
    """The frame that continues `tip`, and where its author's log ends then."""
    (segment,) = build_changeset(
        [op],
        federation=MEMBERS.charter.federation,
        charter_version=MEMBERS.charter.version,
        author=MEMBERS.instance(author).author,
        tip=tip,
        stamp=Stamp(stamp_ms, 0),
        deps=deps,
        sign=MEMBERS.keys[author].sign,
    )
    return segment.frame, Tip(segment.header.last, segment.hash, segment.header.stamp, 0)


def a_dep(author: str, tip: Tip) -> Dep:
    return Dep(MEMBERS.instance(author).author, tip.seq, tip.hash)


def take(peer: Peer, *frames: bytes) -> None:
    """Store `frames` and apply what can be applied."""
    peer.receive(frames, "")
    while peer.work(DAY_MS, acknowledges=False):
        pass


def ends(peer: Peer) -> list[tuple[int, bytes]]:
    return [(head.seq, head.hash) for head in peer.heads()]


def test_whoever_stored_a_segment_has_it_after_a_crash() -> None:
    peer = a_peer("atlas")
    frame, tip = a_segment("cms", EMPTY, 1)
    assert peer.receive([frame], "cms") == (1, ())
    peer.kill()
    assert ends(peer) == [(tip.seq, tip.hash)]


def test_a_log_has_no_gaps() -> None:
    peer = a_peer("atlas")
    one, tip = a_segment("cms", EMPTY, 1)
    two, _ = a_segment("cms", tip, 2)
    receipt = peer.receive([two], "cms")
    assert (receipt.stored, len(receipt.rejected), receipt.faults) == (0, 1, ())
    assert peer.receive([one, two], "cms") == (2, ())


def test_the_second_branch_of_a_fork_does_not_pass_for_the_first() -> None:
    peer = a_peer("atlas")
    (one, tip), (other, other_tip) = (a_segment("cms", EMPTY, stamp_ms) for stamp_ms in (1, 2))
    assert [peer.receive([frame], "cms").stored for frame in (one, one, other, other)] == [1, 0, 1, 0]
    assert ends(peer) == sorted([(1, tip.hash), (1, other_tip.hash)])


def test_a_refused_segment_that_would_begin_a_branch_leaves_nothing() -> None:
    peer = a_peer("atlas")
    one, tip = a_segment("cms", EMPTY, 10)
    two, end = a_segment("cms", tip, 20)
    backdated, _ = a_segment("cms", tip, 5)
    peer.receive([one, two], "cms")
    assert len(peer.receive([backdated], "cms").faults) == 1
    assert ends(peer) == [(end.seq, end.hash)]


def test_what_names_a_branch_that_is_not_here_yet_waits_for_it() -> None:
    """belle2 has one branch of cms's log, atlas had seen the other: atlas is honest, and is applied once that branch is here."""
    peer = a_peer("belle2")
    one, tip = a_segment("cms", EMPTY, 1)
    other, _ = a_segment("cms", EMPTY, 2)
    honest, end = a_segment("atlas", EMPTY, 10, [a_dep("cms", tip)])
    take(peer, other)
    take(peer, honest)
    take(peer, one)
    assert (end.seq, end.hash) in [head[1:] for head in peer.applied_heads()]


def test_what_follows_a_refused_changeset_fares_the_same_in_any_order() -> None:
    bad, tip = a_segment("cms", EMPTY, 1)
    worse, tip = a_segment("cms", tip, 2, [a_dep("cms", tip)])
    after, _ = a_segment("cms", tip, 3)
    at_once, one_by_one = a_peer("atlas"), a_peer("belle2")
    take(at_once, bad, worse, after)
    for frame in (bad, worse, after):
        take(one_by_one, frame)
    assert at_once.tables() == one_by_one.tables()
    assert len(at_once.applied_segments()) == 1


def test_only_what_hangs_on_a_node_is_found_there() -> None:
    """One op with two attachments: the child of one is the parent of the other."""
    top, middle, bottom = (Did("cms", name) for name in ("c1", "c2", "c3"))
    said = encode_op([Assert(Attachment(top, middle), True), Assert(Attachment(middle, bottom), True)])
    peer = a_peer("atlas")
    take(peer, a_segment("cms", EMPTY, 1, op=said)[0])
    assert peer.hanging_on(middle) == {Attachment(middle, bottom)}


def test_what_a_log_says_after_the_end_that_the_charter_names_is_shown_no_more() -> None:
    peer = a_peer("atlas")
    one, tip = a_segment("cms", EMPTY, 1, op=encode_op([Assert(Did("cms", "c1"), Identity(fields.CONTAINER))]))
    two, _ = a_segment("cms", tip, 2, op=encode_op([Assert(Did("cms", "c2"), Identity(fields.CONTAINER))]))
    take(peer, one, two)
    peer.go_by(amended(MEMBERS, "cms", Place(tip.seq, tip.hash)).authority, peer.author)
    assert set(peer.catalogue()[0]) == {Did("cms", "c1")}
