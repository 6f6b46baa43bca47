"""What two peers have to tell each other: pure functions of their heads, and of which of the other's heads are known here.

Equal digests mean equal heads, and nothing is to be done. Otherwise each author's log is compared by itself:

    a head of theirs is unknown here      pull      they send what follows the places that I have, on every branch (R4.4)
    all are known, and one of mine is     push      what follows their heads: I know exactly what they lack
    not among them
    the same heads                        nothing

A peer can lie about its heads; that costs a pull which brings nothing. What it sends is verified by the log.

Whoever answers remembers what it told each peer last (`Told`), and tells it from then on of the authors whose heads have
changed since. One that has forgotten, or whom the peer misunderstood, finds the state that the peer names unknown, and tells all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Optional

import msgpack

from nsync.authority.charter import ID_BYTES, Place
from nsync.log.stored import Head, StoredSegment
from nsync.transport import wire

Have = Mapping[bytes, Sequence[Place]]
"""Of which authors segments are wanted, and places that one has of each log, the newest first; none: nothing of it."""


def digest(heads: Iterable[Head]) -> bytes:
    """16 bytes that are equal for equal heads, in whatever order they come."""
    return hashlib.blake2b(msgpack.packb(sorted(heads)), digest_size=ID_BYTES, person=b"nsync heads").digest()


def covering(heads: Iterable[Head], notices: bytes) -> bytes:
    """The digest that is compared in a hello: of heads, and of notices by their digest; empty where there are none."""
    found = digest(heads)
    return found if not notices else hashlib.blake2b(found + notices, digest_size=ID_BYTES, person=b"nsync all").digest()


def changed(before: Iterable[Head], now: Iterable[Head]) -> Optional[list[Head]]:
    """The heads of the authors whose heads are others `now`; None where that cannot say it, since an author has none any more."""
    old, new = _by_author(before), _by_author(now)
    if old.keys() - new.keys():
        return None
    return sorted(head for author, heads in new.items() if heads != old.get(author) for head in heads)


def merged(before: Iterable[Head], delta: Iterable[Head]) -> list[Head]:
    """The heads of who had `before` and tells that those of the authors in `delta` have changed."""
    new = sorted(delta)
    authors = {head.author for head in new}
    return sorted([*(head for head in before if head.author not in authors), *new])


def _by_author(heads: Iterable[Head]) -> dict[bytes, set[Head]]:
    found: dict[bytes, set[Head]] = {}
    for head in heads:
        found.setdefault(head.author, set()).add(head)
    return found


class Told:
    """What each peer was told last, for as long as the process lives: one list of heads for each member."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[bytes, Sequence[Head]]] = {}

    def answer(self, peer: str, hello: wire.Hello, heads: Sequence[Head], notices: bytes = b"") -> wire.HelloReply:
        """What to answer to the member `peer`, with these heads here, and notices of this digest."""
        version, now = wire.pick(wire.Versions(hello.version_min, hello.version_max)), digest(heads)
        before, last = self._last.get(peer), (now, heads)
        self._last[peer] = last
        if hello.digest == covering(heads, notices):
            return wire.HelloReply(version, None)
        delta = changed(before[1], heads) if before is not None and before[0] == hello.since else None
        return wire.HelloReply(version, list(heads) if delta is None else delta, delta is not None)


def missing_ops(mine: Iterable[Head], theirs: Iterable[Head]) -> dict[bytes, int]:
    """Of each author in `theirs` about how many ops `mine` lacks, at least 1: what a pull of them weighs."""
    here: dict[bytes, int] = {}
    for head in mine:
        here[head.author] = max(head.seq, here.get(head.author, 0))
    ends: dict[bytes, int] = {}
    for head in theirs:
        ends[head.author] = max(head.seq, ends.get(head.author, 0))
    return {author: max(1, seq - here.get(author, 0)) for author, seq in ends.items()}


def forked(heads: Iterable[Head]) -> frozenset[bytes]:
    """The authors whose log has several branches (R4.5)."""
    return frozenset(author for author, count in Counter(head.author for head in heads).items() if count > 1)


def behind(mine: Iterable[Head], theirs: Iterable[Head], unknown: Iterable[Head]) -> dict[bytes, list[Place]]:
    """The authors of whom they lack something, and where they are; of `theirs`, those in `unknown` are not here."""
    there: dict[bytes, list[Place]] = {}
    for head in sorted(theirs, reverse=True):
        there.setdefault(head.author, []).append(Place(head.seq, head.hash))
    lacking = {head.author for head in mine if Place(head.seq, head.hash) not in there.get(head.author, ())}
    return {author: there.get(author, []) for author in sorted(lacking - {head.author for head in unknown})}


def questions(have: Have, bytes_max: int = wire.HAVE_BYTES_MAX) -> Iterator[dict[bytes, Sequence[Place]]]:
    """Cut `have` into as few pulls as their limits allow."""
    asked: dict[bytes, Sequence[Place]] = {}
    size = wire.LIST_BYTES_MAX
    for author, places in sorted(have.items()):
        if len(places) > wire.PLACES_MAX:
            places = [*places[: wire.PLACES_MAX - 1], places[-1]]
        entry = wire.AUTHOR_BYTES_MAX + len(places) * wire.PLACE_BYTES_MAX
        if asked and (size + entry > bytes_max or len(asked) == wire.HEADS_MAX):
            yield asked
            asked, size = {}, wire.LIST_BYTES_MAX
        asked[author] = places
        size += entry
    if asked:
        yield asked


def advance(have: Have, sent: Iterable[StoredSegment]) -> dict[bytes, list[Place]]:
    """What who had `have` has when `sent` has come too: each segment takes the place of the one that it continues."""
    after = {author: list(places) for author, places in have.items()}
    for segment in sent:
        continued = Place(segment.first - 1, segment.prev)
        places = [place for place in after.get(segment.author, ()) if place != continued]
        after[segment.author] = [Place(segment.last, segment.hash), *places]
    return after
