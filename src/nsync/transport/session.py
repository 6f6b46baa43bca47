"""What two peers have to tell each other: pure functions of their heads, and of which of the other's heads are known here.

Equal digests mean equal heads, and nothing is to be done. Otherwise each author's log is compared by itself:

    a head of theirs is unknown here      pull      they send what follows the places that I have, on every branch (R4.4)
    all are known, and one of mine is     push      what follows their heads: I know exactly what they lack
    not among them
    the same heads                        nothing

A peer can lie about its heads; that costs a pull which brings nothing. What it sends is verified by the log.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgpack

from nsync.authority.charter import ID_BYTES, Place
from nsync.log.stored import Head, StoredSegment
from nsync.transport import wire

Have = Mapping[bytes, Sequence[Place]]
"""Of which authors segments are wanted, and places that one has of each log, the newest first; none: nothing of it."""


def digest(heads: Iterable[Head]) -> bytes:
    """16 bytes that are equal for equal heads, in whatever order they come."""
    return hashlib.blake2b(msgpack.packb(sorted(heads)), digest_size=ID_BYTES, person=b"nsync heads").digest()


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
