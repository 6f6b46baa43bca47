"""What two peers say to each other about notices (log.notices), in two round trips at most.

    notices → [decided, ids, [[kind, raw], …]]     the number of the newest floor and the ids here; what you wanted
            ← [decided, ids, [[kind, raw], …]]     mine, and what you lack of it

The caller says what it has. The answer has what the caller lacks, and by its ids the caller knows what the other lacks: that goes with
the second question. `ids` is one byte string, 8 bytes an id, ascending. What does not fit goes the next time.

Pure: bytes in, values out. Whatever breaks a rule or a limit raises ProtocolError, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from nsync.errors import ProtocolError, RejectedSegment
from nsync.log.notices import FORK, ID_BYTES, Notice, Stand
from nsync.namespace import codec

VERB = "notices"

IDS_MAX = 1 << 14
"""Fork proofs, heads and votes of a thousand members, some of whom do their worst."""
SENT_BYTES_MAX = 1 << 20
"""Of notices in one message, unless the first alone has more."""
SENT_MAX = 1024
"""The same in number: some 0.1 s of signature checks; a floor of 1024 votes has as many again."""
NOTICES_BYTES_MAX = 2 * SENT_BYTES_MAX + IDS_MAX * ID_BYTES + SENT_MAX * 8
"""Of a message. One notice has a MiB at most (log.notices)."""
NOTICES_S_MAX = 60.0
NUMBER_MAX = 1 << 32


class Word(NamedTuple):
    """One message, of either side."""

    stand: Stand
    sent: tuple[Notice, ...]


class NoticeLog(Protocol):
    """All that the transport knows of notices. Called from the threads of one executor."""

    def stand(self) -> Stand:
        """What is here."""

    def lacked(self, theirs: Stand, bytes_max: int) -> list[Notice]:
        """What somebody with `theirs` lacks of it, at least one if any, then up to `bytes_max`."""

    def take(self, notices: Sequence[Notice], sender: str) -> int:
        """Verify the notices that the instance `sender` passed on, and keep what is new; how many were. Returns after COMMIT."""


def encode(word: Word) -> bytes:
    sent = tuple((notice.kind, notice.raw) for notice in word.sent)
    return codec.encode((word.stand.decided, b"".join(word.stand.ids), sent))


def decode(data: bytes) -> Word:
    if len(data) > NOTICES_BYTES_MAX:
        raise ProtocolError(f"notices: {len(data)} bytes; at most {NOTICES_BYTES_MAX} are allowed")
    try:
        fields = codec.decode(data, VERB, items_max=SENT_MAX)
    except RejectedSegment as error:
        raise ProtocolError(str(error)) from error
    if type(fields) is not tuple or len(fields) != 3:
        raise ProtocolError("notices: not (decided, ids, notices)")
    decided, ids, sent = fields
    if type(decided) is not int or not 0 <= decided < NUMBER_MAX:
        raise ProtocolError("notices: the newest floor has no number")
    if type(sent) is not tuple or not all(map(_is_notice, sent)):
        raise ProtocolError("notices: a notice is not a kind and a byte string")
    return Word(Stand(decided, _ids(ids)), tuple(Notice(*one) for one in sent))


def first(mine: Stand) -> Word:
    """What the caller says at first."""
    return Word(cut(mine), ())


def cut(stand: Stand) -> Stand:
    """As much of `stand` as a message holds: what it does not hold is sent once more, and counts for nothing."""
    return stand._replace(ids=stand.ids[:IDS_MAX])


def answer(log: NoticeLog, word: Word, sender: str) -> tuple[Word, int]:
    """What is said to `word`, and how much of it was new here."""
    fresh = log.take(word.sent, sender) if word.sent else 0
    return Word(cut(log.stand()), tuple(log.lacked(word.stand, SENT_BYTES_MAX)[:SENT_MAX])), fresh


def follow(log: NoticeLog, reply: Word, sender: str) -> tuple[Word, int]:
    """What the caller says to the answer, and how much of that was new here. Nothing to be sent ends it."""
    fresh = log.take(reply.sent, sender) if reply.sent else 0
    return Word(cut(log.stand()), tuple(log.lacked(reply.stand, SENT_BYTES_MAX)[:SENT_MAX])), fresh


def _ids(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, bytes) or len(value) % ID_BYTES or len(value) > IDS_MAX * ID_BYTES:
        raise ProtocolError(f"notices: not at most {IDS_MAX} ids of {ID_BYTES} bytes")
    ids = tuple(value[start : start + ID_BYTES] for start in range(0, len(value), ID_BYTES))
    if any(left >= right for left, right in zip(ids, ids[1:])):
        raise ProtocolError("notices: ids are not in ascending order")
    return ids


def _is_notice(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and type(value[0]) is int and FORK <= value[0] < 256 and type(value[1]) is bytes
