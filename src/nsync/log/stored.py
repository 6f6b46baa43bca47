"""What a log tells about itself to whoever passes its segments on: the words between store and transport."""

from __future__ import annotations

from typing import NamedTuple

from nsync.authority.charter import Place
from nsync.log.segment import NO_HASH

BEGINNING = Place(0, NO_HASH)
"""The place before the first op: every log has it."""

GAP = ": a gap: "
"""Stands in the text of a refusal that says only that what the segment continues is not here: whoever asks from further back gets it."""


class StoredSegment(NamedTuple):
    """A segment of the log, as it goes over the wire."""

    author: bytes
    """16 bytes."""
    first: int
    """seq of its first op."""
    last: int
    """seq of its last op."""
    frame: bytes
    """The signed segment exactly as stored."""
    prev: bytes
    """The hash of the header that it continues; 16 zero bytes for the first."""
    hash: bytes
    """The hash of its own header."""


class Head(NamedTuple):
    """The end of a branch of one author's log as it is stored, applied or not; an author who forked has several."""

    author: bytes
    seq: int
    hash: bytes
    """16 bytes: the hash of the header of the last stored segment."""


class Receipt(NamedTuple):
    """What became of a batch of frames."""

    stored: int
    """New segments made durable; those already known are not counted."""
    rejected: tuple[str, ...]
    """One text per refused segment: author, seq, reason."""

    @property
    def faults(self) -> tuple[str, ...]:
        """The refusals that are more than a gap."""
        return tuple(text for text in self.rejected if GAP not in text)
