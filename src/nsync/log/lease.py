"""Signed heads: what each author says, and when, of how far its own log has come.

They travel ahead of the segments and by every way, so that whoever holds segments back cannot hide that there are any. Nothing is
read from them but alarms: they move no reading, and none is believed without its author's signature.

    an author said nothing for longer than the lease            it is down, or cut off from here
    a peer still lacks what an author said a lease ago           it withholds it, or cannot take it
    one's own head is not in one's own log                       the database is a restored one: nothing more is signed (R4.6)

Of each author the newest is kept. An author with an empty log says that too: seq 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional

from nsync.authority.charter import ID_BYTES, AuthorId, Charter, FederationId, Place, Verify
from nsync.clock import AHEAD_MS_MAX, STAMP_MAX
from nsync.errors import RejectedSegment
from nsync.log.segment import NO_HASH, SEQ_MAX, SIGNATURE_BYTES, Sign
from nsync.log.stored import Head
from nsync.namespace import codec

FORMAT = 1
HEAD_BYTES_MAX = 192
"""As signed 69 bytes at most, with the signature and the lengths 140."""
SIGN_PER_LEASE = 3
"""How often a lease is renewed before it ends: one lost message or two are no alarm."""


class SignedHead(NamedTuple):
    """`author` had signed its log up to `place` when its clock showed `ms`."""

    federation: FederationId
    author: AuthorId
    place: Place
    ms: int
    signature: bytes

    @property
    def order(self) -> tuple[int, int, bytes]:
        """By which the newest is found, the same everywhere."""
        return (self.ms, self.place.seq, self.place.hash)


def sign_head(federation: FederationId, author: AuthorId, place: Place, ms: int, sign: Sign) -> SignedHead:
    """The head of one's own log. Whoever calls has stored what it names, so that it never says too much."""
    return SignedHead(federation, author, place, ms, sign("head", _signed(federation, author, place, ms)))


def signed_bytes(head: SignedHead) -> bytes:
    """What `head` says, without its signature."""
    return _signed(head.federation, head.author, head.place, head.ms)


def encode_head(head: SignedHead) -> bytes:
    """The canonical bytes of `head`."""
    return codec.encode((signed_bytes(head), head.signature))


def decode_head(raw: bytes, charter: Charter, verify: Verify) -> SignedHead:
    """The head in `raw`, its signature checked. Raises RejectedSegment."""
    if len(raw) > HEAD_BYTES_MAX:
        raise RejectedSegment(f"a signed head has {len(raw)} bytes; at most {HEAD_BYTES_MAX} are allowed")
    parts = codec.decode(raw, "signed head")
    _check(type(parts) is tuple and len(parts) == 2 and all(type(part) is bytes for part in parts), "is not (head, signature)")
    signed, signature = parts
    _check(len(signature) == SIGNATURE_BYTES, f"has no signature of {SIGNATURE_BYTES} bytes")
    fields = codec.decode(signed, "signed head")
    _check(type(fields) is tuple and len(fields) == 6 and type(fields[0]) is int and fields[0] == FORMAT, f"is not of format {FORMAT}")
    _, federation, author, seq, hash_, ms = fields
    _check(
        all(type(i) is bytes and len(i) == ID_BYTES for i in (federation, author, hash_)),
        f"has an id or hash of other than {ID_BYTES} bytes",
    )
    _check(type(seq) is int and 0 <= seq <= SEQ_MAX and (seq > 0 or hash_ == NO_HASH), "names no place")
    _check(type(ms) is int and 0 <= ms <= STAMP_MAX, "has no time")
    _check(federation == charter.federation, "is of another federation")
    life = charter.life(author)
    if life is None or not verify(life.key, "head", signed, signature):
        raise RejectedSegment(f"a signed head at {seq}: the signature is not that of author {author.hex()}")
    return SignedHead(FederationId(federation), AuthorId(author), Place(seq, hash_), ms, signature)


def read_head(raw: bytes) -> SignedHead:
    """A head that was checked when it was stored."""
    signed, signature = codec.load(raw)
    _, federation, author, seq, hash_, ms = codec.load(signed)
    return SignedHead(FederationId(federation), AuthorId(author), Place(seq, hash_), ms, signature)


def is_ahead(head: SignedHead, now_ms: int) -> bool:
    """Whether its author's clock, or lie, is further ahead than the guard allows: then it would be the newest for too long."""
    return head.ms - now_ms > AHEAD_MS_MAX


def is_due(held: Optional[SignedHead], place: Place, lease_ms: int, now_ms: int) -> bool:
    """Whether an instance whose own newest signed head is `held`, and whose log ends at `place`, should sign it now."""
    return held is None or held.place != place or now_ms - held.ms >= lease_ms // SIGN_PER_LEASE


# ---- alarms


def overdue(heads: Iterable[SignedHead], charter: Charter, lease_ms: int, now_ms: int) -> dict[str, int]:
    """The instances whose newest word is older than the lease, each with how old that is, in ms. Who never said any is not known."""
    found = {}
    for head in heads:
        instance = charter.by_author(head.author)
        if instance is not None and instance.author == head.author and instance.retired is None and now_ms - head.ms > lease_ms:
            found[instance.name] = now_ms - head.ms
    return found


class Lack(NamedTuple):
    """How far a peer has a log, and how far it should have it."""

    has: int
    should: int


class Watch:
    """Which peers do not come after authors who said long ago how far they are.

    Two marks of each author: up to where its log has been known to go for a lease at least, and since when up to where else. A peer that
    lacks the former the second time that it is asked, and has not come further since the first, withholds it or cannot take it.
    Once is no alarm: whoever was down lacks much, and has it after the exchange.
    """

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._old: dict[AuthorId, int] = {}
        self._young: dict[AuthorId, tuple[int, int]] = {}
        """(since when by the clock here, seq)"""
        self._lacked: dict[str, Mapping[AuthorId, Lack]] = {}

    def learn(self, heads: Iterable[SignedHead], now_ms: int) -> None:
        """These are the newest heads at this time."""
        for head in heads:
            since_ms, seq = self._young.setdefault(head.author, (now_ms, head.place.seq))
            if now_ms - since_ms > self._lease_ms:
                self._old[head.author] = seq
                self._young[head.author] = (now_ms, head.place.seq)

    def asked(self, peer: str, theirs: Iterable[Head]) -> dict[AuthorId, Lack]:
        """`peer` has told its heads; returns whose logs it does not come after."""
        ends: dict[bytes, int] = {}
        for head in theirs:
            ends[head.author] = max(head.seq, ends.get(head.author, 0))
        lacks = {author: Lack(ends.get(author, 0), seq) for author, seq in dict(self._old).items() if ends.get(author, 0) < seq}
        before, self._lacked[peer] = self._lacked.get(peer, {}), lacks
        return {author: lack for author, lack in lacks.items() if author in before and before[author].has == lack.has}


def _signed(federation: FederationId, author: AuthorId, place: Place, ms: int) -> bytes:
    return codec.encode((FORMAT, federation, author, place.seq, place.hash, ms))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise RejectedSegment(f"a signed head {what}")
