"""What a log tells about itself to whoever passes its segments on: the words between store and transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from nsync.authority.charter import Place
from nsync.log.segment import NO_HASH

BEGINNING = Place(0, NO_HASH)
"""The place before the first op: every log has it."""

GAP = ": a gap: "
"""Stands in the text of a refusal that says only that what the segment continues is not here: whoever asks from further back gets it."""


FULL = ": full: "
"""Stands in the text of a refusal that says only that too much of its author waits here to be applied: later it is taken."""

REFUSED_TOLD_MAX = 8
"""Of what a peer brought at once and is refused: so many reasons go to the log. A stranger's key makes any number of them."""


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
        """The refusals that are more than a gap, or too early."""
        return tuple(text for text in self.rejected if GAP not in text and FULL not in text)

    @property
    def full(self) -> bool:
        """Whether some of it is taken once what waits here is applied."""
        return any(FULL in text for text in self.rejected)


class PeerRecord(NamedTuple):
    """What one instance knows of a peer, as it keeps it and shows it. Times are wall times, in ms since 1970."""

    name: str
    written_ms: int = 0
    """When this was put down."""
    contact_ms: Optional[int] = None
    """When it answered last."""
    round_trip_ms: Optional[int] = None
    offset_ms: Optional[int] = None
    """How far the peer's clock is ahead of the one here; negative when it is behind."""
    heads: Optional[tuple[Head, ...]] = None
    """The ends of its logs, as it told them last; None as long as it told none."""
    heads_ms: Optional[int] = None
    """When it told them."""
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    """In a row."""
    since_ms: Optional[int] = None
    """When this row of failures began."""
    next_try_ms: Optional[int] = None
    """When it is tried again, if it fails."""
    reason: str = ""
    """Of the last failure; empty for a healthy peer."""


def refusals(texts: Sequence[str], what: str, sender: str) -> tuple[str, ...]:
    """What goes to the log when each of `texts` says why `what`, which `sender` brought, is refused: some of them, and how many more."""
    told = tuple(f"refused {what} that {sender} brought: {text}" for text in texts[:REFUSED_TOLD_MAX])
    more = len(texts) - len(told)
    return (*told, f"refused {more} more that {sender} brought with it") if more else told
