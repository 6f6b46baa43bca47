"""The notices of one simulated instance: the real notary on its database, with every call passing the failpoints.

What others have been told of a host's votes goes to the ledger: a vote that was told and is lost, or a second one, breaks a promise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Callable, Protocol, TypeVar

from nsync.auth.keys import verify
from nsync.log.notices import Notice, Stand
from nsync.log.segment import Sign
from nsync.log.stored import Head
from nsync.store.notary import Notary, Tended
from nsync.store.notices import Taken
from nsync.testing.peer import Peer
from nsync.testing.stage import Stage

LEASE_MS = 60_000
FLOOR_INTERVAL_MS = 6_000
"""Some floors in a story, each over what is some seconds old."""

T = TypeVar("T")


class Host(Protocol):
    """Whose notices they are."""

    name: str
    peer: Peer

    def now_ms(self) -> int: ...

    def step(self, step: Callable[[], T]) -> T:
        """Call the database. Raises Crash where the process ends in the middle."""

    def checked(self, step: Callable[[], T]) -> T:
        """Nothing fails here, or the story has."""


class Notices:
    """One process' (transport.notices.NoticeLog)."""

    def __init__(self, host: Host, stage: Stage, sign: Sign) -> None:
        self._host = host
        self._stage = stage
        self._notary = Notary(host.peer, sign, verify, host.now_ms, self._heard, LEASE_MS, FLOOR_INTERVAL_MS, lambda: 0.0)

    def stand(self) -> Stand:
        return self._host.step(self._notary.stand)

    def lacked(self, theirs: Stand, bytes_max: int) -> list[Notice]:
        found = self._host.step(lambda: self._notary.lacked(theirs, bytes_max))
        self._host.checked(lambda: self._stage.ledger.told_votes(self._host.name, found))
        return found

    def take(self, notices: Sequence[Notice], sender: str) -> int:
        return self._host.step(lambda: self._notary.take(notices, sender))

    def asked(self, peer: str, theirs: Collection[Head]) -> None:
        self._notary.asked(peer, theirs)

    def tend(self) -> Tended:
        """Sign one's own head when that is due, and vote when there is something to vote for."""
        tended = self._host.step(self._notary.tend)
        for text in tended.said:
            self._stage.trace.say(f"{self._host.name}: {text}")
        return tended

    def _heard(self, taken: Taken, sender: str) -> None:
        for text in taken.said:
            self._stage.trace.say(f"{self._host.name}: {text}")
