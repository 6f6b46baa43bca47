"""What store and transport say to each other about repair below a floor (store.repair, transport.repair).

The blocks of a floor are numbered through: its authors in ascending order, each log from seq 1 on. Op number n is the one at place
n mod BLOCK_OPS of block n / BLOCK_OPS.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Optional

from nsync.errors import ProtocolError
from nsync.log.compaction import BLOCK_OPS
from nsync.log.floor import Floor

BITMAP_BYTES = BLOCK_OPS // 8


class Damage(NamedTuple):
    """What is live here below a floor, where that is not what its signers signed."""

    floor: int
    digests: tuple[bytes, ...]
    """Of all blocks of the floor."""


class Mended(NamedTuple):
    """What became of ops that a peer sent."""

    taken: int
    """Put in their places."""
    refused: tuple[str, ...]


class Found(NamedTuple):
    """What came of a repair with one peer."""

    differing: Optional[tuple[int, ...]]
    """The blocks in which the peer had something else; None where it could not tell."""
    mended: int


class Stretch(NamedTuple):
    """A block of one author's log: the ops after one seq, up to another."""

    author: bytes
    after: int
    until: int


class Numbered:
    """The blocks and ops of a floor by their numbers."""

    def __init__(self, floor: Floor) -> None:
        self._heads = floor.heads
        self._firsts = [0]
        for head in floor.heads:
            self._firsts.append(self._firsts[-1] + -(-head.seq // BLOCK_OPS))

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self._firsts[-1]

    def block(self, number: int) -> Stretch:
        """Raises ProtocolError for one that the floor does not have."""
        if not 0 <= number < self.blocks:
            raise ProtocolError(f"block {number}: the floor has {self.blocks}")
        index = bisect_right(self._firsts, number) - 1
        after = (number - self._firsts[index]) * BLOCK_OPS
        return Stretch(self._heads[index].author, after, min(after + BLOCK_OPS, self._heads[index].seq))

    def op(self, number: int) -> tuple[bytes, int]:
        """Author and seq. Raises ProtocolError for one that the floor does not have."""
        author, after, until = self.block(number // BLOCK_OPS)
        seq = after + number % BLOCK_OPS + 1
        if seq > until:
            raise ProtocolError(f"op {number}: the log of {author.hex()[:12]} ends at {until} below the floor")
        return author, seq

    def ops(self, numbers: tuple[int, ...]) -> Iterator[tuple[bytes, int]]:
        """Author and seq of each. Raises ProtocolError as `op`."""
        return map(self.op, numbers)
