"""Repair below a floor: what should be live there and is not here comes from a peer, found by parts (R3.8, log.compaction).

    blocks   → [floor, first]                    of the floor's blocks, numbered through, from `first` on
             ← 8 bytes of the digest of each, one zstd stream
    bitmaps  → [floor, [number, step, step, …]]  of the blocks that differ
             ← 512 bytes of each: a bit for each of its ops, lowest first, set where it is live; one zstd stream
    ops      → [floor, [number, step, step, …]]  of the ops that are live there and not present here
             ← (length: 4 bytes big-endian, op) of each in turn, as many as fit, one zstd stream

The blocks of a floor are numbered through, its authors in ascending order and each log from seq 1 on; op number n is the one at place
n mod 4096 of block n / 4096. So both name the same thing by a small number as long as both go by the same floor; who goes by another,
or has not compacted below it yet, answers nothing at all, an empty body.

Nothing that a peer says is believed: an op is taken if its hash is the one that stands in its place here, and nothing is ever removed
on a peer's word. Wrong digests and bitmaps cost questions; the first wrong op ends the repair with that peer.

`repair` is the whole course of it, without I/O. Whatever breaks a rule or a limit raises ProtocolError, and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Optional, Protocol, Union

from nsync.errors import ProtocolError, TransportError
from nsync.log.compaction import BLOCK_OPS
from nsync.log.repair import BITMAP_BYTES, Damage, Found, Mended
from nsync.namespace import codec
from nsync.namespace.ops import OP_BYTES_MAX
from nsync.transport import streams, wire

VERBS = BLOCKS, BITMAPS, OPS = ("blocks", "bitmaps", "ops")

SHORT_BYTES = 8
"""Of a digest: what somebody could make equal here, the whole digest tells that the floor's signers signed."""

BLOCKS_MAX = 1 << 17
"""Digests in one answer: 1 MiB, for 500 million ops."""
BITMAPS_MAX = 1 << 13
"""Bitmaps in one answer: 4 MiB, for 33 million ops."""
BITMAPS_AT_ONCE = 64
"""Blocks that are read in one transaction: a quarter of a second."""
OPS_MAX = 1 << 13
"""Ops in one answer."""
OPS_BYTES_MAX = 4 << 20
"""The same in bytes, unless the first alone has more."""

QUESTION_BYTES_MAX = 16 + 9 * BITMAPS_MAX
BLOCKS_BYTES_MAX = SHORT_BYTES * BLOCKS_MAX + 1024
BITMAPS_BYTES_MAX = BITMAP_BYTES * BITMAPS_MAX + (1 << 16)
ANSWER_BYTES_MAX = OPS_BYTES_MAX + 4 * OPS_MAX + OP_BYTES_MAX + (1 << 16)

_LEVELS = {BLOCKS: 1, BITMAPS: 1, OPS: 3}
_LENGTH = struct.Struct(">I")


class Places(NamedTuple):
    """Blocks or ops of a floor, by their numbers in ascending order."""

    floor: int
    numbers: tuple[int, ...]


class RepairLog(Protocol):
    """All that the transport knows of the store. Called from the threads of one executor."""

    def damage(self) -> Optional[Damage]:
        """What differs below the newest floor from what its signers signed; None where nothing does, or it cannot be told yet."""

    def digests(self, floor: int) -> Optional[Sequence[bytes]]:
        """The digests of all blocks of `floor`; None unless it is the newest floor here, and everything is compacted."""

    def bitmaps(self, floor: int, blocks: Sequence[int]) -> Optional[list[bytes]]:
        """Which ops of these blocks are live; None as in `digests`. Raises ProtocolError for a block that the floor does not have."""

    def ops(self, floor: int, numbers: Sequence[int], bytes_max: int) -> Optional[list[bytes]]:
        """The ops with these numbers, at least one, then up to `bytes_max`; empty ones for those that are not here. As `bitmaps`."""

    def mend(self, floor: int, numbers: Sequence[int], ops: Sequence[bytes], sender: str) -> Mended:
        """Put those of `ops` that are missing here in their places; it is durable when this returns."""

    def repaired(self, floor: int, sender: str, found: Found) -> None:
        """Look again, and keep what still differs."""


# ---- the course of it


class Ask(NamedTuple):
    """Ask the peer, and send the body of its answer."""

    verb: str
    body: bytes
    bytes_max: int


class Look(NamedTuple):
    """Send the bitmaps of these blocks as they are here; None when they cannot be told any more."""

    blocks: Sequence[int]


class Mend(NamedTuple):
    """Give these ops to the store, and send how many it took."""

    numbers: Sequence[int]
    ops: Sequence[bytes]


Step = Union[Ask, Look, Mend]


def repair(damage: Damage) -> Generator[Step, object, Found]:
    """What to do, step by step; each is answered with `send`. Two round trips, then one for each part of the ops."""
    floor, mine = damage
    theirs: list[bytes] = []
    while len(theirs) < len(mine):
        answer = yield Ask(BLOCKS, encode_first(floor, len(theirs)), BLOCKS_BYTES_MAX)
        digests = decode_digests(_bytes(answer), min(BLOCKS_MAX, len(mine) - len(theirs)))
        if digests is None:
            return Found(None, 0)
        theirs += digests
    differing = tuple(block for block, both in enumerate(zip(mine, theirs)) if both[0][:SHORT_BYTES] != both[1])
    mended = 0
    for part in _parts(differing, BITMAPS_MAX):
        answer = yield Ask(BITMAPS, encode_places(Places(floor, part)), BITMAPS_BYTES_MAX)
        live, here = decode_bitmaps(_bytes(answer), len(part)), (yield Look(part))
        if live is None or here is None:
            return Found(None, mended)
        assert isinstance(here, list)
        mended += yield from _fetch(floor, missing(part, live, here))
    return Found(differing, mended)


def _fetch(floor: int, wanted: Iterator[int]) -> Generator[Step, object, int]:
    mended = 0
    left: tuple[int, ...] = ()
    while asked := (*left, *islice(wanted, OPS_MAX - len(left))):
        answer = yield Ask(OPS, encode_places(Places(floor, asked)), ANSWER_BYTES_MAX)
        ops = decode_ops(_bytes(answer), len(asked))
        if ops is None:
            break
        if not all(ops):
            raise ProtocolError("ops: one that was said to be live is not there")
        taken = yield Mend(asked[: len(ops)], ops)
        assert isinstance(taken, int)
        mended, left = mended + taken, asked[len(ops) :]
    return mended


def missing(blocks: Sequence[int], live: Sequence[bytes], here: Sequence[bytes]) -> Iterator[int]:
    """The numbers of the ops that are live there and not present here, one by one: a bit is less than a number."""
    pairs = ((int.from_bytes(theirs, "little"), int.from_bytes(mine, "little")) for theirs, mine in zip(live, here))
    return _numbers([(block, theirs & ~mine) for block, (theirs, mine) in zip(blocks, pairs)])


def _numbers(masks: Sequence[tuple[int, int]]) -> Iterator[int]:
    for block, bits in masks:
        while bits:
            low = bits & -bits
            yield block * BLOCK_OPS + low.bit_length() - 1
            bits ^= low


def answer(log: RepairLog, verb: str, body: bytes) -> Iterator[bytes]:
    """The answer to a question, in pieces; each is made from one reading of the store."""
    if verb == BLOCKS:
        floor, first = decode_first(body)
        digests = log.digests(floor)
        if digests is not None:
            yield encode_digests(digests[first : first + BLOCKS_MAX])
        return
    asked = decode_places(body)
    if verb == OPS:
        ops = log.ops(asked.floor, asked.numbers, OPS_BYTES_MAX)
        if ops is not None:
            yield encode_ops(ops)
        return
    writer = streams.compressor(_LEVELS[BITMAPS])
    for index, part in enumerate(_parts(asked.numbers, BITMAPS_AT_ONCE)):
        bitmaps = log.bitmaps(asked.floor, part)
        if bitmaps is None and index:
            raise TransportError(f"floor {asked.floor} is not the newest one any more")
        if bitmaps is None:
            return
        yield writer.compress(b"".join(bitmaps))
    yield writer.flush()


# ---- messages


def encode_first(floor: int, first: int) -> bytes:
    return codec.encode((floor, first))


def decode_first(data: bytes) -> tuple[int, int]:
    floor, first = wire.unpack_fields(data, BLOCKS, 2, QUESTION_BYTES_MAX, 2)
    return wire.number(floor, BLOCKS), wire.number(first, BLOCKS)


def encode_places(places: Places) -> bytes:
    steps = (number - before for before, number in zip((0, *places.numbers), places.numbers))
    return codec.encode((places.floor, tuple(steps)))


def decode_places(data: bytes) -> Places:
    floor, steps = wire.unpack_fields(data, "places", 2, QUESTION_BYTES_MAX, max(OPS_MAX, BITMAPS_MAX))
    if type(steps) is not tuple or not steps or any(wire.number(step, "places") == 0 for step in steps[1:]):
        raise ProtocolError("places: not a list of numbers in ascending order")
    numbers, last = [], 0
    for step in steps:
        last = wire.number(last + wire.number(step, "places"), "places")
        numbers.append(last)
    return Places(wire.number(floor, "places"), tuple(numbers))


def encode_digests(digests: Iterable[bytes]) -> bytes:
    return _deflate(BLOCKS, b"".join(digest[:SHORT_BYTES] for digest in digests))


def decode_digests(data: bytes, count: int) -> Optional[list[bytes]]:
    return _equal(data, BLOCKS, SHORT_BYTES, count)


def encode_bitmaps(bitmaps: Iterable[bytes]) -> bytes:
    return _deflate(BITMAPS, b"".join(bitmaps))


def decode_bitmaps(data: bytes, count: int) -> Optional[list[bytes]]:
    return _equal(data, BITMAPS, BITMAP_BYTES, count)


def encode_ops(ops: Iterable[bytes]) -> bytes:
    return _deflate(OPS, b"".join(_LENGTH.pack(len(op)) + op for op in ops))


def decode_ops(data: bytes, count_max: int) -> Optional[list[bytes]]:
    """At least one, at most `count_max`; None for no answer."""
    if not data:
        return None
    raw = _inflate(data, OPS, OPS_BYTES_MAX + _LENGTH.size * OPS_MAX + OP_BYTES_MAX)
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + _LENGTH.size + int.from_bytes(raw[at : at + _LENGTH.size], "big")
        if end > len(raw) or end - at - _LENGTH.size > OP_BYTES_MAX or len(found) == count_max:
            raise ProtocolError(f"ops: not at most {count_max} ops of at most {OP_BYTES_MAX} bytes")
        found.append(raw[at + _LENGTH.size : end])
        at = end
    if not found:
        raise ProtocolError("ops: none came")
    return found


def _equal(data: bytes, what: str, size: int, count: int) -> Optional[list[bytes]]:
    """`count` things of `size` bytes; None for no answer."""
    if not data:
        return None
    raw = _inflate(data, what, size * count)
    if len(raw) != size * count:
        raise ProtocolError(f"{what}: {len(raw)} bytes, not {count} times {size}")
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def _deflate(what: str, raw: bytes) -> bytes:
    writer = streams.compressor(_LEVELS[what])
    return writer.compress(raw) + writer.flush()


def _inflate(data: bytes, what: str, bytes_max: int) -> bytes:
    """All of one zstd stream, which fills `data`."""
    stream = streams.Inflater(what, bytes_max)
    found = b"".join(stream.feed(data))
    stream.close()
    return found


def _parts(numbers: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(numbers), size):
        yield tuple(numbers[start : start + size])


def _bytes(answer: object) -> bytes:
    assert isinstance(answer, bytes)
    return answer
