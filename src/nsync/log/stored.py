"""What a log tells about itself to whoever passes its segments on: the words between store and transport."""

from __future__ import annotations

from typing import NamedTuple


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


class Head(NamedTuple):
    """How far the log of one author is stored, applied or not."""

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
