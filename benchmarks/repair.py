"""What it takes to find out what is missing below a floor, in bytes and round trips: the real course, the real messages, synthetic logs.

Ten million ops of one log, one in ten superseded, and d of the live ones missing at random. Counted is everything that goes either way
until the missing ops are known and asked for: digests, bitmaps, and the numbers of the ops; not the ops themselves, nor HTTP. The
rival's figures are those published for as many random ids of 32 bytes (negentropy v1), likewise without what the ids stand for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.rows import Row
from nsync.log.compaction import BLOCK_OPS, block_digest
from nsync.log.repair import BITMAP_BYTES, Damage
from nsync.transport import repair
from nsync.transport.repair import Ask, Look

OPS = 10_000_000
DEAD = 0.1
RIVAL = "negentropy v1, published"
MISSING = {"d10": (10, 22_000), "d1k": (1_000, 1_050_000), "d100k": (100_000, 50_000_000)}
"""How many, and the rival's bytes for as many."""
TRIPS = 3
LEAF_BYTES = 16
NAMES = (*(f"wire_repair_bytes_n10m_{name}" for name in MISSING), "wire_repair_bytes_n10m_d100k_half_dead", "wire_repair_round_trips")
OP = b"\x91\x02"


class Spent(NamedTuple):
    """What a repair took."""

    bytes: int
    round_trips: int


class Peer:
    """One side's live ops, and the digests of its blocks."""

    def __init__(self, bitmaps: Sequence[bytes], digests: Sequence[bytes]) -> None:
        self._bitmaps, self._digests = bitmaps, digests

    def damage(self) -> Damage:
        return Damage(1, tuple(self._digests))

    def digests(self, floor: int) -> Sequence[bytes]:
        return self._digests

    def bitmaps(self, floor: int, blocks: Sequence[int]) -> list[bytes]:
        return [self._bitmaps[block] for block in blocks]


def measure(directory: Path, entries: int) -> Iterator[Row]:
    """Always ten million: that is what the names say."""
    rng = random.Random(17)
    whole = _whole(rng, DEAD)
    for name, (count, rival) in MISSING.items():
        spent = repaired(whole, _without(whole, count, rng), count)
        yield Row(f"wire_repair_bytes_n10m_{name}", spent.bytes, f"bytes to find {count:,} missing ops, and ask for them", RIVAL, rival)
        if name == "d1k":
            trips = spent.round_trips
    half = _whole(rng, 0.5)
    spent = repaired(half, _without(half, 100_000, rng), 100_000)
    what = "bytes where every second op is superseded: bitmaps that nothing can compress"
    yield Row("wire_repair_bytes_n10m_d100k_half_dead", spent.bytes, what, RIVAL, MISSING["d100k"][1])
    yield Row("wire_repair_round_trips", trips, "until all that is missing is known", RIVAL, TRIPS)


def repaired(whole: Peer, lacking: Peer, count: int) -> Spent:
    """Run the course until all the ops that are missing were asked for; what comes then is not counted."""
    course, said, size, trips, wanted = repair.repair(lacking.damage()), None, 0, 0, 0
    try:
        while True:
            step = course.send(said)
            if isinstance(step, Ask) and step.verb == repair.OPS:
                size += len(step.body)
                said = repair.encode_ops([OP] * len(repair.decode_places(step.body).numbers))
            elif isinstance(step, Ask):
                said = b"".join(repair.answer(whole, step.verb, step.body))  # type: ignore[arg-type]
                size, trips = size + len(step.body) + len(said), trips + 1
            elif isinstance(step, Look):
                said = lacking.bitmaps(1, step.blocks)  # type: ignore[assignment]
            else:
                wanted += len(step.numbers)
                said = len(step.numbers)  # type: ignore[assignment]
    except StopIteration:
        assert wanted == count, f"{wanted} of {count} missing ops were found"
        return Spent(size, trips)


def _whole(rng: random.Random, dead: float) -> Peer:
    bitmaps = [_bits(rng, dead) for _ in range(-(-OPS // BLOCK_OPS))]
    return Peer(bitmaps, [_digest(number, bitmap) for number, bitmap in enumerate(bitmaps)])


def _bits(rng: random.Random, dead: float) -> bytes:
    bits = sum(1 << place for place in range(BLOCK_OPS) if rng.random() >= dead)
    return bits.to_bytes(BITMAP_BYTES, "little")


def _digest(number: int, bitmap: bytes) -> bytes:
    leaves, bits = random.Random(number).randbytes(LEAF_BYTES * BLOCK_OPS), int.from_bytes(bitmap, "little")
    first = number * BLOCK_OPS + 1
    return block_digest(
        (first + place, leaves[place * LEAF_BYTES : (place + 1) * LEAF_BYTES]) for place in range(BLOCK_OPS) if bits >> place & 1
    )


def _without(whole: Peer, count: int, rng: random.Random) -> Peer:
    """The same without `count` of the live ops."""
    digests = list(whole.digests(1))
    bitmaps = [int.from_bytes(bitmap, "little") for bitmap in whole.bitmaps(1, range(len(digests)))]
    touched = set()
    while count:
        number, place = divmod(rng.randrange(len(bitmaps) * BLOCK_OPS), BLOCK_OPS)
        if bitmaps[number] >> place & 1:
            bitmaps[number] ^= 1 << place
            touched.add(number)
            count -= 1
    found = [bits.to_bytes(BITMAP_BYTES, "little") for bits in bitmaps]
    for number in touched:
        digests[number] = _digest(number, found[number])
    return Peer(found, digests)
