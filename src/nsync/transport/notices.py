"""What two peers say to each other about notices (log.notices), in two round trips at most.

    notices → [decided, ids, [[kind, raw], …]]     the number of the newest floor and the ids here; what you wanted
            ← [decided, ids, [[kind, raw], …]]     mine, and what you lack of it

The caller says what it has. The answer has what the caller lacks, and by its ids the caller knows what the other lacks: that goes with
the second question. `ids` is one byte string, 8 bytes an id, ascending. What does not fit goes the next time.

Pure: bytes in, values out. Whatever breaks a rule or a limit raises ProtocolError, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from typing import Callable, NamedTuple, Optional, Protocol

from nsync.errors import ProtocolError
from nsync.log.notices import FLOOR, FORK, ID_BYTES, TWICE, Notice, Stand, digest
from nsync.log.stored import Head
from nsync.namespace import codec
from nsync.transport import wire
from nsync.transport.metering import CHECKS

VERB = "notices"

IDS_MAX = 1 << 14
"""Fork proofs, heads and votes of a thousand members, some of whom do their worst."""
SENT_BYTES_MAX = 1 << 20
"""Of notices in one message, unless the first alone has more."""
SENT_MAX = 1024
"""The same in number: some 0.1 s of signature checks. A floor that is the next one here has one more for each member that voted for it; any
other has none."""
NOTICES_BYTES_MAX = 2 * SENT_BYTES_MAX + IDS_MAX * ID_BYTES + SENT_MAX * 8
"""Of a message. One notice has a MiB at most (log.notices)."""
NOTICES_S_MAX = 60.0
TRIPS_MAX = 2
"""What is left after that goes the next time."""
NUMBER_MAX = 1 << 32
VOTE_BYTES_MIN = 85
"""Under a floor: an author with its signature."""


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
        """Verify the notices that the instance `sender` passed on, and keep what is new; how much of that should be passed on at once.
        Returns after COMMIT."""

    def asked(self, peer: str, theirs: Collection[Head]) -> object:
        """`peer` has told its heads. It must not block."""


class Peer(Protocol):
    """What is asked of one peer: `client.PeerClient`, or a simulation's."""

    name: str

    async def notices(self, word: Word) -> Word:
        """What the peer says to `word`."""


def encode(word: Word) -> bytes:
    sent = tuple((notice.kind, notice.raw) for notice in word.sent)
    return codec.encode((word.stand.decided, b"".join(word.stand.ids), sent))


def decode(data: bytes) -> Word:
    decided, ids, sent = wire.unpack_fields(data, VERB, 3, NOTICES_BYTES_MAX, SENT_MAX)
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


def signatures(notice: Notice) -> int:
    """How many are checked at most before it is believed: of what it says only its size is looked at."""
    if notice.kind == FLOOR:
        return max(1, len(notice.raw) // VOTE_BYTES_MIN)
    return 2 if notice.kind in (FORK, TWICE) else 1


def answer(log: NoticeLog, word: Word, sender: str) -> tuple[Word, int]:
    """What either side says to `word` of `sender`, and how much of that should be passed on."""
    urgent = log.take(word.sent, sender) if word.sent else 0
    return Word(cut(log.stand()), tuple(log.lacked(word.stand, SENT_BYTES_MAX)[:SENT_MAX])), urgent


class NoticeDoor:
    """The notices, for code on the event loop: the one door through which the transport enters them."""

    def __init__(self, log: NoticeLog, executor: Optional[Executor], on_urgent: Callable[[], None]) -> None:
        """`on_urgent`: called on the event loop when something came that should be passed on; usually `Gossip.noticed`."""
        self._log, self._executor, self._on_urgent = log, executor, on_urgent

    async def digest(self) -> bytes:
        """Of what is here."""
        return digest(await asyncio.get_running_loop().run_in_executor(self._executor, self._log.stand))

    async def exchange(self, peer: Peer) -> None:
        """Tell `peer` what it lacks, and take what it has more."""
        word = first(await asyncio.get_running_loop().run_in_executor(self._executor, self._log.stand))
        for _ in range(TRIPS_MAX):
            word = await self.answer(await peer.notices(word), peer.name)
            if not word.sent:
                return

    async def answer(self, word: Word, sender: str) -> Word:
        """What to say to `word`, for which `sender` is charged if it asks. What is durable is passed on even if it has gone away."""
        loop, charge = asyncio.get_running_loop(), CHECKS.get()
        if charge is not None:
            charge(sum(map(signatures, word.sent)))
        return await loop.run_in_executor(self._executor, self._answer, loop, word, sender)

    def asked(self, peer: str, theirs: Collection[Head]) -> None:
        """`peer` has told its heads."""
        self._log.asked(peer, theirs)

    def _answer(self, loop: asyncio.AbstractEventLoop, word: Word, sender: str) -> Word:
        said, urgent = answer(self._log, word, sender)
        if urgent:
            loop.call_soon_threadsafe(self._on_urgent)
        return said


def _ids(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, bytes) or len(value) % ID_BYTES or len(value) > IDS_MAX * ID_BYTES:
        raise ProtocolError(f"notices: not at most {IDS_MAX} ids of {ID_BYTES} bytes")
    ids = tuple(value[start : start + ID_BYTES] for start in range(0, len(value), ID_BYTES))
    if any(left >= right for left, right in zip(ids, ids[1:])):
        raise ProtocolError("notices: ids are not in ascending order")
    return ids


def _is_notice(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and type(value[0]) is int and FORK <= value[0] < 256 and type(value[1]) is bytes
