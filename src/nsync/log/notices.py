"""Notices: small signed things that go ahead of the segments, each believed for its own signatures and nothing else.

    kind     what                                               kept, of whatever anybody sends
    FORK     a proof that an author signed two histories        the FORKS_MAX earliest places of each author
    HEAD     how far an author says that its log has come       the newest of each author
    VOTE     a vote for the floor after the newest decided one  one of each author
    TWICE    two votes of one author for that floor             one pair of each author
    FLOOR    a decided floor, with the votes that make it       each, by its number

So what a member can fill is bounded, and two who tell each other what they have end with the same. An id is the kind, and 7 bytes of the
hash of what the notice says; not of its signatures, of which a key can make many, nor of which proof or pair of votes says it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Union

from nsync.authority.charter import AuthorId, Charter, FederationId, Verify
from nsync.errors import RejectedSegment
from nsync.log import floor as floors
from nsync.log.floor import HEADS_MAX, Floor, Vote, decode_vote, encode_vote
from nsync.log.forks import ForkProof, check_proof
from nsync.log.lease import SignedHead, decode_head, encode_head, signed_bytes
from nsync.log.segment import SIGNATURE_BYTES, Header
from nsync.namespace import codec

FORK, HEAD, VOTE, TWICE, FLOOR = 1, 2, 3, 4, 5

ID_BYTES = 8
FORKS_MAX = 64
"""Of one author: as many branches of it are kept (log.forks)."""
NOTICE_BYTES_MAX = 1 << 20
"""A floor of HEADS_MAX heads with as many votes has 540 KiB."""
VOTES_MAX = 4096
"""Under one floor: as many as there can be members."""


class Notice(NamedTuple):
    """As it travels."""

    kind: int
    raw: bytes


class Fork(NamedTuple):
    """A checked proof."""

    proof: ForkProof
    header: Header
    """One of its two."""


class Votes(NamedTuple):
    """Checked votes that came together: one, two of one author, or all that make a floor."""

    votes: tuple[Vote, ...]


Told = Union[Fork, SignedHead, Votes]
"""What a notice says, checked."""


class Stand(NamedTuple):
    """What somebody has."""

    decided: int
    """The number of the newest decided floor."""
    ids: tuple[bytes, ...]
    """Of all notices but of older floors; ascending."""


def digest(stand: Stand) -> bytes:
    """16 bytes that are equal for equal stands."""
    return hashlib.blake2b(b"%d %s" % (stand.decided, b"".join(stand.ids)), digest_size=16, person=b"nsync notices").digest()


def check(notice: Notice, charter: Charter, verify: Verify) -> Told:
    """What `notice` says. Raises RejectedSegment."""
    if len(notice.raw) > NOTICE_BYTES_MAX:
        raise RejectedSegment(f"a notice has {len(notice.raw)} bytes; at most {NOTICE_BYTES_MAX} are allowed")
    if notice.kind == FORK:
        proof = decode_proof(notice.raw)
        return Fork(proof, check_proof(proof, charter, verify))
    if notice.kind == HEAD:
        return decode_head(notice.raw, charter, verify)
    if notice.kind == VOTE:
        return Votes((decode_vote(notice.raw, charter, verify),))
    if notice.kind == TWICE:
        return Votes(_decode_twice(notice.raw, charter, verify))
    if notice.kind == FLOOR:
        return Votes(_decode_floor(notice.raw, charter, verify))
    raise RejectedSegment(f"a notice is of kind {notice.kind}, which this nsync does not know")


def is_in_turn(notice: Notice, decided: int) -> bool:
    """Whether `notice` is of use where that many floors are decided: a floor is, if it is the next one. Nothing is checked for it."""
    return notice.kind != FLOOR or notice.raw.startswith(codec.encode(decided + 1), 1)


# ---- one's own


def fork_notice(raw: bytes) -> Notice:
    """Of a proof as it is stored."""
    return Notice(FORK, raw)


def head_notice(head: SignedHead) -> Notice:
    return Notice(HEAD, encode_head(head))


def vote_notice(votes: Sequence[Vote]) -> Notice:
    """Of all the votes of one author for one number that are here."""
    if len(votes) == 1:
        return Notice(VOTE, encode_vote(votes[0]))
    return Notice(TWICE, codec.encode(tuple(sorted(map(encode_vote, votes))[:2])))


def floor_notice(votes: Sequence[Vote]) -> Notice:
    """Of the votes, all for one floor, that make it."""
    floor = votes[0].floor
    signed = sorted({vote.author: vote.signature for vote in votes}.items())
    return Notice(FLOOR, codec.encode((floor.number, floor.term, tuple(map(tuple, floor.heads)), floor.live, tuple(signed))))


def decode_proof(raw: bytes) -> ForkProof:
    """A proof, its form checked and nothing else. Raises RejectedSegment."""
    parts = codec.decode(raw, "fork proof")
    if type(parts) is not tuple or len(parts) != 4 or any(type(part) is not bytes for part in parts):
        raise RejectedSegment("a fork proof is not two headers with their signatures")
    return ForkProof(*parts)


def _decode_twice(raw: bytes, charter: Charter, verify: Verify) -> tuple[Vote, ...]:
    parts = codec.decode(raw, "two votes")
    if type(parts) is not tuple or len(parts) != 2 or any(type(part) is not bytes for part in parts):
        raise RejectedSegment("two votes for one number are not two")
    one, other = (decode_vote(part, charter, verify) for part in parts)
    if (one.author, one.floor.number) != (other.author, other.floor.number) or one.floor == other.floor:
        raise RejectedSegment(f"two votes of {one.author.hex()[:12]} for {one.floor.number} prove nothing: they are not two for one number")
    return one, other


def _decode_floor(raw: bytes, charter: Charter, verify: Verify) -> tuple[Vote, ...]:
    """Whose votes they are is looked at before any signature: at most one check a member, and the first bad one is the last."""
    parts = codec.decode(raw, "floor", items_max=max(HEADS_MAX, VOTES_MAX))
    if type(parts) is not tuple or len(parts) != 5 or type(parts[2]) is not tuple or type(parts[4]) is not tuple:
        raise RejectedSegment("a floor is not (number, term, heads, digest, votes)")
    number, term, heads, live, signed = parts
    for one in signed:
        if (
            type(one) is not tuple
            or len(one) != 2
            or type(one[0]) is not bytes
            or type(one[1]) is not bytes
            or len(one[1]) != SIGNATURE_BYTES
        ):
            raise RejectedSegment("a floor has a vote that is not an author with a signature")
    floor, authors = floors.check_floor(number, term, heads, live), [author for author, _ in signed]
    floors.check_term(floor, charter)
    votes = tuple(Vote(FederationId(charter.federation), AuthorId(author), floor, signature) for author, signature in signed)
    if any(one >= other for one, other in zip(authors, authors[1:])):
        raise RejectedSegment(f"a floor {number} has votes that are unsorted, or two of one author")
    if not floors.is_carried(floor, votes, charter, term):
        raise RejectedSegment(f"a floor {number} has the votes of no more than two thirds of the members of its term, {term}")
    if not floors.electors(term, charter).keys() >= set(authors):
        raise RejectedSegment(f"a floor {number} has votes of some who have none in its term, {term}")
    said = floors.signed_for(charter.federation, floor)
    for vote in votes:
        floors.check_signature(vote, said(vote.author), charter, verify)
    return votes


# ---- ids


def id_of_fork(author: bytes, first: int) -> bytes:
    """The same for whatever two histories prove it."""
    return _id(FORK, codec.encode((author, first)))


def id_of_head(head: SignedHead) -> bytes:
    return _id(HEAD, signed_bytes(head))


def id_of_votes(votes: Sequence[Vote]) -> bytes:
    """Of all the votes of one author for one number that are here."""
    if len(votes) == 1:
        return _id(VOTE, floors.signed_bytes(votes[0]))
    return _id(TWICE, codec.encode((votes[0].author, votes[0].floor.number)))


def id_of_floor(floor: Floor) -> bytes:
    return _id(FLOOR, floors.encode_floor(floor))


def _id(kind: int, said: bytes) -> bytes:
    return bytes([kind]) + hashlib.blake2b(said, digest_size=ID_BYTES - 1, person=b"nsync notice").digest()
