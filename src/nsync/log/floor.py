"""The floor: heads that more than two thirds of the member organisations signed (R4.8).

It counts as everyone's acknowledgement of what is below, and no revocation, fork, incarnation or amendment reaches there. An
organisation has one vote a number, given by the first instance that the charter lists for it. Floors are counted from 1 without gaps,
and each holds at least what the one before it held.

More than two thirds: two floors of one number would need more than a third of the organisations to vote twice. Should that
happen, nothing tells which is right, and there is no floor from that number on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Optional

from nsync.authority.charter import ID_BYTES, AuthorId, Charter, FederationId, Place, Verify
from nsync.errors import RejectedSegment
from nsync.log.segment import SEQ_MAX, SIGNATURE_BYTES, Dep, Sign
from nsync.namespace import codec

FORMAT = 1
HEADS_MAX = 4096
"""Authors in one floor: a thousand members with some instances and incarnations each."""
VOTE_BYTES_MAX = HEADS_MAX * 48 + 1024
VOTES_READ_MAX = 2048
"""Votes that stay decoded: all of them are looked at in each transaction, and there are some for each floor."""


class Floor(NamedTuple):
    """What is below it is settled for ever."""

    number: int
    heads: tuple[Dep, ...]
    """The end of each author's log below the floor; sorted by author."""
    live: bytes
    """The digest of what is live below it (log.compaction)."""

    def seq(self, author: bytes) -> int:
        """Up to where `author`'s log lies below the floor."""
        return next((head.seq for head in self.heads if head.author == author), 0)


class Vote(NamedTuple):
    """One organisation's signature under a floor."""

    federation: FederationId
    author: AuthorId
    """Of the instance that votes for its organisation."""
    floor: Floor
    signature: bytes


def sign_vote(federation: FederationId, author: AuthorId, floor: Floor, sign: Sign) -> Vote:
    """The vote of `author` for `floor`. Whoever calls has stored it before anybody sees it, so that it never votes twice."""
    return Vote(federation, author, floor, sign("floor", _signed(federation, author, floor)))


def encode_vote(vote: Vote) -> bytes:
    """The canonical bytes of `vote`."""
    return codec.encode((_signed(vote.federation, vote.author, vote.floor), vote.signature))


def decode_vote(raw: bytes, charter: Charter, verify: Verify) -> Vote:
    """The vote in `raw`, its signature checked. Raises RejectedSegment."""
    if len(raw) > VOTE_BYTES_MAX:
        raise RejectedSegment(f"a vote for a floor has {len(raw)} bytes; at most {VOTE_BYTES_MAX} are allowed")
    parts = codec.decode(raw, "vote")
    _check(type(parts) is tuple and len(parts) == 2 and type(parts[0]) is bytes and type(parts[1]) is bytes, "is not (vote, signature)")
    signed, signature = parts
    _check(len(signature) == SIGNATURE_BYTES, f"has no signature of {SIGNATURE_BYTES} bytes")
    fields = codec.decode(signed, "vote", items_max=HEADS_MAX)
    _check(type(fields) is tuple and len(fields) == 6 and fields[0] == FORMAT and type(fields[0]) is int, f"is not of format {FORMAT}")
    _, federation, author, number, heads, live = fields
    _check(
        all(type(i) is bytes and len(i) == ID_BYTES for i in (federation, author, live)),
        f"has an id or digest that is not {ID_BYTES} bytes",
    )
    _check(type(number) is int and 1 <= number < 1 << 32, "has no number")
    _check(type(heads) is tuple and len(heads) <= HEADS_MAX and all(map(_is_head, heads)), "has malformed heads")
    _check(
        list(heads) == sorted(heads) and len({head[0] for head in heads}) == len(heads),
        "has heads that are unsorted or name an author twice",
    )
    vote = Vote(FederationId(federation), AuthorId(author), Floor(number, tuple(Dep(*head) for head in heads), live), signature)
    _check(vote.federation == charter.federation, "is of another federation")
    life = charter.life(vote.author)
    if life is None or not verify(life.key, "floor", signed, signature):
        raise RejectedSegment(f"a vote for floor {number}: the signature is not that of author {author.hex()}")
    return vote


def signed_bytes(vote: Vote) -> bytes:
    """What `vote` says, without its signature."""
    return _signed(vote.federation, vote.author, vote.floor)


@lru_cache(maxsize=1024)
@lru_cache(maxsize=VOTES_READ_MAX)
def read_vote(raw: bytes) -> Vote:
    """A vote that was checked when it was stored."""
    signed, signature = codec.load(raw)
    _, federation, author, number, heads, live = codec.load(signed)
    return Vote(FederationId(federation), AuthorId(author), Floor(number, tuple(Dep(*head) for head in heads), live), signature)


def floors(votes: Iterable[Vote], charter: Charter) -> list[Floor]:
    """The floors that `votes` make, from number 1 on."""
    by_number: dict[int, list[Vote]] = {}
    for vote in votes:
        by_number.setdefault(vote.floor.number, []).append(vote)
    found: list[Floor] = []
    while True:
        floor = elected(by_number.get(len(found) + 1, ()), charter)
        if floor is None or (found and not _grows(found[-1], floor)):
            return found
        found.append(floor)


def elected(votes: Iterable[Vote], charter: Charter) -> Optional[Floor]:
    """The floor that more than two thirds of the members voted for among `votes`, all for one number; None also if there are two."""
    organisation = {life.author: name for name, instance in charter.voters().items() for life in instance.incarnations}
    tally = Counter(floor for _, floor in {(organisation[vote.author], vote.floor) for vote in votes if vote.author in organisation})
    found = [floor for floor, count in tally.items() if 3 * count > 2 * len(charter.members)]
    return found[0] if len(found) == 1 else None


def place(floor: Floor, author: bytes) -> Optional[Place]:
    """The end of `author`'s log below `floor`, if it has any part there."""
    return next((Place(head.seq, head.hash) for head in floor.heads if head.author == author), None)


def _grows(before: Floor, after: Floor) -> bool:
    return all(after.seq(head.author) >= head.seq for head in before.heads)


def _signed(federation: FederationId, author: AuthorId, floor: Floor) -> bytes:
    return codec.encode((FORMAT, federation, author, floor.number, tuple(tuple(head) for head in floor.heads), floor.live))


def _is_head(head: object) -> bool:
    return (
        type(head) is tuple
        and len(head) == 3
        and all(type(i) is bytes and len(i) == ID_BYTES for i in (head[0], head[2]))
        and type(head[1]) is int
        and 1 <= head[1] <= SEQ_MAX
    )


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise RejectedSegment(f"a vote for a floor {what}")
