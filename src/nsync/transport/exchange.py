"""One exchange with one peer: hello; pull what it has more; push what it lacks.

In sync it is one round trip and some bytes. It resumes by itself: each batch is durable when the next one is read, and
the next exchange begins from the heads of then. What one side refuses does not keep the rest from passing; it makes the
exchange fail at its end, with the reason, so that the pair tries again later and not in a loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional, Protocol

from nsync.errors import NsyncError, ProtocolError, RejectedSegment
from nsync.log.stored import Head, Receipt
from nsync.transport import session, wire
from nsync.transport.ports import LogDoor, Take


class Peer(Protocol):
    """What an exchange asks of one peer: `client.PeerClient`, or a simulation's."""

    name: str

    async def hello(self, digest: bytes) -> wire.HelloReply:
        """Whether the peer's heads have `digest`, and its heads if not."""

    async def pull(self, have: Mapping[bytes, int], take: Take) -> None:
        """Give `take` what the peer has beyond `have`."""

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        """Give the peer one batch of frames to store."""


class Exchange:
    """Run it once. Its numbers are true also when it ends early."""

    def __init__(self, client: Peer, log: LogDoor) -> None:
        self._client = client
        self._log = log
        self.answered = False
        """Whether the peer spoke to us at all."""
        self.pulled = 0
        """Segments from the peer that were new here."""
        self.pushed = 0
        """Segments from here that were new to the peer."""
        self.forked: frozenset[bytes] = frozenset()
        """Authors whose log goes as far there as here, and is not the same (R4.5)."""
        self._failure: Optional[NsyncError] = None

    async def run(self) -> None:
        """Raises TransportError, ProtocolError, NotAuthorised, or RejectedSegment when either side refused a segment."""
        mine = await self._log.heads()
        reply = await self._client.hello(session.digest(mine))
        self.answered = True
        if reply.heads is None:
            return
        plan = session.plan(mine, reply.heads)
        self.forked = plan.forked
        if plan.pull:
            await self._pull(mine, reply.heads)
        if plan.push:
            await self._push(session.have(reply.heads))
        if self._failure is not None:
            raise self._failure

    async def _pull(self, mine: Sequence[Head], theirs: Sequence[Head]) -> None:
        """Ask until we have what they announced, or nothing more comes."""
        missing = session.plan(mine, theirs).pull
        while missing:
            await self._client.pull(session.have(mine), self._take)
            before, mine = session.have(mine), await self._log.heads()
            missing = session.plan(mine, theirs).pull
            if missing and session.have(mine) == before:
                author = min(missing).hex()
                self._fail(ProtocolError(f"{self._client.name} announced segments of author {author} that did not come"))
                return

    async def _take(self, frames: Sequence[bytes]) -> None:
        receipt = await self._log.receive(frames, self._client.name)
        self.pulled += receipt.stored
        if receipt.rejected:
            reason = wire.clean(receipt.rejected[0])
            self._fail(RejectedSegment(f"{self._client.name} sent a segment that is refused here: {reason}"))

    async def _push(self, theirs: Mapping[bytes, int]) -> None:
        """Send batches until they have all; or stop when they refuse one as a whole, the rest they can pull."""
        have = dict(theirs)
        while True:
            batch = await self._log.segments_after(have, wire.BATCH_BYTES_MAX)
            if not batch:
                return
            have.update((segment.author, segment.last) for segment in batch)
            receipt = await self._client.push([segment.frame for segment in batch])
            self.pushed += receipt.stored
            if receipt.rejected:
                self._fail(RejectedSegment(f"{self._client.name} refuses a segment that is stored here: {receipt.rejected[0]}"))
                if not receipt.stored:
                    return

    def _fail(self, failure: NsyncError) -> None:
        """Fail at the end. The first reason is kept; the others most often follow from it."""
        self._failure = self._failure or failure
