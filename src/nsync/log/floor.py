"""The floor: heads that more than two thirds of the member organisations signed (R4.8).

It counts as everyone's acknowledgement of what is below, and no revocation, fork, incarnation or amendment reaches there. Floors are
counted from 1 without gaps, and each holds at least what the one before it held.

Members come and go, and a decided floor stays. So each floor names its *term*, the version of the charter whose members vote for it,
and is decided by more than two thirds of the members of two versions: of its own term, and of the term of the floor before it (of the
genesis, for the first). An organisation has one vote a number, given by the first instance that the version lists for it and that has
not retired. Two floors of one number would need more than a third of the members of the term before to vote twice; should that
happen, nothing tells which is right, and there is no floor from that number on.

Where a number is never decided (its proposer signed two; more than a third are gone), an amendment says `revote_after`: the votes of
earlier terms for higher numbers count no more, and its own term alone decides the first of them (docs/adr/0014).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional

from nsync.authority.charter import ID_BYTES, AuthorId, Charter, FederationId, Place, Verify
from nsync.errors import RejectedSegment
from nsync.log.segment import SEQ_MAX, SIGNATURE_BYTES, Dep, Sign
from nsync.namespace import codec

FORMAT = 2
HEADS_MAX = 4096
"""Authors in one floor: a thousand members with some instances and incarnations each."""
VOTE_BYTES_MAX = HEADS_MAX * 48 + 1024
FLOORS_READ_MAX = 1024
"""Floors that stay decoded: the readings look at all of them."""


class Floor(NamedTuple):
    """What is below it is settled for ever."""

    number: int
    term: int
    """The version of the charter whose members vote for it."""
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
    _check(type(fields) is tuple and len(fields) == 7 and fields[0] == FORMAT and type(fields[0]) is int, f"is not of format {FORMAT}")
    _, federation, author, *rest = fields
    _check(all(type(i) is bytes and len(i) == ID_BYTES for i in (federation, author)), f"has an id that is not {ID_BYTES} bytes")
    vote = Vote(FederationId(federation), AuthorId(author), check_floor(*rest), signature)
    _check(vote.federation == charter.federation, "is of another federation")
    check_term(vote.floor, charter)
    check_signature(vote, signed, charter, verify)
    return vote


def check_floor(number: Any, term: Any, heads: Any, live: Any) -> Floor:
    """The floor that these fields of a message are. Raises RejectedSegment."""
    _check(type(live) is bytes and len(live) == ID_BYTES, f"has a digest that is not {ID_BYTES} bytes")
    _check(type(number) is int and 1 <= number < 1 << 32, "has no number")
    _check(type(term) is int and 1 <= term < 1 << 32, "has no term")
    _check(type(heads) is tuple and len(heads) <= HEADS_MAX and all(map(_is_head, heads)), "has malformed heads")
    _check(
        list(heads) == sorted(heads) and len({head[0] for head in heads}) == len(heads),
        "has heads that are unsorted or name an author twice",
    )
    return Floor(number, term, tuple(Dep(*head) for head in heads), live)


def check_term(floor: Floor, charter: Charter) -> None:
    """Raises RejectedSegment unless it is known here who votes for `floor`."""
    if charter.at(floor.term) is None:
        raise RejectedSegment(
            f"a vote for floor {floor.number}: its term is version {floor.term} of the charter; here {charter.version} is in force"
        )


def check_signature(vote: Vote, signed: bytes, charter: Charter, verify: Verify) -> None:
    """Raises RejectedSegment unless the author of `vote` signed what it says, the bytes `signed`."""
    life = charter.life(vote.author)
    if life is None or not verify(life.key, "floor", signed, vote.signature):
        raise RejectedSegment(f"a vote for floor {vote.floor.number}: the signature is not that of author {vote.author.hex()}")


def signed_for(federation: FederationId, floor: Floor) -> Callable[[AuthorId], bytes]:
    """What the vote of any author for `floor` says: but for the author it is the same bytes, and they are made once."""
    said = _signed(federation, AuthorId(bytes(ID_BYTES)), floor)
    at = len(codec.encode((FORMAT, federation, bytes(ID_BYTES)))) - ID_BYTES
    return lambda author: said[:at] + author + said[at + ID_BYTES :]


def signed_bytes(vote: Vote) -> bytes:
    """What `vote` says, without its signature."""
    return _signed(vote.federation, vote.author, vote.floor)


def read_vote(raw: bytes) -> Vote:
    """A vote that was checked when it was stored."""
    signed, signature = codec.load(raw)
    _, federation, author, number, term, heads, live = codec.load(signed)
    return Vote(FederationId(federation), AuthorId(author), Floor(number, term, tuple(Dep(*head) for head in heads), live), signature)


def encode_floor(floor: Floor) -> bytes:
    """As a decided floor is stored."""
    return codec.encode((floor.number, floor.term, tuple(map(tuple, floor.heads)), floor.live))


@lru_cache(maxsize=FLOORS_READ_MAX)
def read_floor(raw: bytes) -> Floor:
    """A floor as it is stored."""
    number, term, heads, live = codec.load(raw)
    return Floor(number, term, tuple(Dep(*head) for head in heads), live)


def floors(votes: Iterable[Vote], charter: Charter) -> list[Floor]:
    """The floors that `votes` make, from number 1 on."""
    by_number: dict[int, list[Vote]] = {}
    for vote in votes:
        by_number.setdefault(vote.floor.number, []).append(vote)
    found: list[Floor] = []
    while True:
        floor = decided(by_number.get(len(found) + 1, ()), charter, found[-1] if found else None)
        if floor is None:
            return found
        found.append(floor)


def decided(votes: Collection[Vote], charter: Charter, before: Optional[Floor]) -> Optional[Floor]:
    """The floor after `before` that `votes` make, if they make one."""
    number, base = (1, 1) if before is None else (before.number + 1, before.term)
    anew = charter.revoted(number)
    found = []
    for floor in {vote.floor for vote in votes if vote.floor.number == number and vote.floor.term >= max(base, anew)}:
        terms = {floor.term, *([base] if base >= anew else [])}
        if (before is None or grows(before, floor)) and all(is_carried(floor, votes, charter, term) for term in terms):
            found.append(floor)
    return found[0] if len(found) == 1 else None


def is_carried(floor: Floor, votes: Iterable[Vote], charter: Charter, version: int) -> bool:
    """Whether more than two thirds of the members of that version of the charter have voted for `floor`."""
    named, electorate = charter.at(version), electors(floor.term, charter)
    members = set(named.electors()) if named is not None else set()
    voted = {electorate[vote.author] for vote in votes if vote.floor == floor and vote.author in electorate}
    return 3 * len(voted & members) > 2 * len(members)


def electors(term: int, charter: Charter) -> dict[AuthorId, str]:
    """Who votes in `term`, and for which organisation: by any incarnation, since an instance may begin another one meanwhile."""
    named = charter.at(term)
    lives = {name: charter.by_name(instance.name) for name, instance in named.electors().items()} if named is not None else {}
    return {life.author: name for name, instance in lives.items() if instance is not None for life in instance.incarnations}


def place(floor: Floor, author: bytes) -> Optional[Place]:
    """The end of `author`'s log below `floor`, if it has any part there."""
    return next((Place(head.seq, head.hash) for head in floor.heads if head.author == author), None)


def grows(before: Floor, after: Floor) -> bool:
    """Whether `after` holds what `before` holds."""
    return all(after.seq(head.author) >= head.seq for head in before.heads)


def _signed(federation: FederationId, author: AuthorId, floor: Floor) -> bytes:
    return codec.encode((FORMAT, federation, author, floor.number, floor.term, tuple(tuple(head) for head in floor.heads), floor.live))


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
