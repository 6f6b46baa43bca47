"""One exchange with one peer: hello; pull what it has and this instance has not; push what it lacks.

In sync it is one round trip and some bytes. It resumes by itself: each batch is durable when the next one is read, and
the next exchange begins from the heads of then. What one side refuses does not keep the rest from passing; it makes the
exchange fail at its end, with the reason, so that the pair tries again later and not in a loop. A gap is no such reason:
whoever lacks what comes before asks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    async def pull(self, have: session.Have, take: Take) -> None:
        """Give `take` what the peer has beyond `have` of the authors in it."""

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        """Give the peer one batch of frames to store."""


class Exchange:
    """Run it once. Its numbers are true also when it ends early."""

    def __init__(self, client: Peer, log: LogDoor, me: bytes) -> None:
        self._client = client
        self._log = log
        self._me = me
        self.answered = False
        """Whether the peer spoke to us at all."""
        self.theirs: Optional[Sequence[Head]] = None
        """The peer's heads, as it has told them."""
        self.pulled = 0
        """Segments from the peer that were new here."""
        self.pushed = 0
        """Segments from here that were new to the peer."""
        self.forked: frozenset[bytes] = frozenset()
        """Authors whose log had several branches here when the exchange began."""
        self._failure: Optional[NsyncError] = None

    async def run(self) -> None:
        """Raises TransportError, ProtocolError, NotAuthorised, or RejectedSegment when either side refused a segment."""
        mine = await self._log.heads()
        self.forked = session.forked(mine)
        reply = await self._client.hello(session.digest(mine))
        self.answered = True
        self.theirs = mine if reply.heads is None else reply.heads
        if reply.heads is None:
            return
        unknown = await self._log.unknown(reply.heads)
        if unknown:
            await self._pull(unknown)
            mine, unknown = await self._log.heads(), await self._log.unknown(unknown)
        await self._push(session.behind(mine, reply.heads, unknown), reply.heads)
        if self._failure is not None:
            raise self._failure

    async def _pull(self, missing: Sequence[Head]) -> None:
        """Ask until the heads that they announced are here, or nothing more comes."""
        while missing:
            before = self.pulled
            await self._ask({head.author for head in missing})
            left = await self._log.unknown(missing)
            if len(left) == len(missing) and self.pulled == before:
                author = left[0].author.hex()
                self._fail(ProtocolError(f"{self._client.name} announced segments of author {author} that did not come"))
                return
            missing = left

    async def _ask(self, authors: Collection[bytes]) -> None:
        """Pull these logs; one's own before the others, since nothing more may be signed once it is here (R4.6)."""
        have = await self._log.locators(authors)
        own = {self._me: have.pop(self._me)} if self._me in have else {}
        for question in (*session.questions(own), *session.questions(have)):
            await self._client.pull(question, self._take)

    async def _take(self, frames: Sequence[bytes]) -> None:
        receipt = await self._log.receive(frames, self._client.name)
        self.pulled += receipt.stored
        if receipt.faults:
            reason = wire.clean(receipt.faults[0])
            self._fail(RejectedSegment(f"{self._client.name} sent a segment that is refused here: {reason}"))

    async def _push(self, have: session.Have, theirs: Sequence[Head]) -> None:
        """Send batches until they have all; or stop when they take nothing of one, the rest they can pull."""
        while have:
            batch = await self._log.segments_after(have, wire.BATCH_BYTES_MAX)
            if not batch:
                return
            have = session.advance(have, batch)
            receipt = await self._client.push([segment.frame for segment in batch])
            self.pushed += receipt.stored
            if receipt.faults:
                self._fail(RejectedSegment(f"{self._client.name} refuses a segment that is stored here: {receipt.faults[0]}"))
            if not receipt.stored:
                if not receipt.rejected:
                    await self._check_moved(theirs)
                return

    async def _check_moved(self, before: Sequence[Head]) -> None:
        """What they lacked they have: somebody else brought it, and their heads are others; or they never lacked it."""
        reply = await self._client.hello(session.digest(await self._log.heads()))
        if reply.heads == before:
            self._fail(ProtocolError(f"{self._client.name} announces less than it has: it takes nothing of what it lacks"))

    def _fail(self, failure: NsyncError) -> None:
        """Fail at the end. The first reason is kept; the others most often follow from it."""
        self._failure = self._failure or failure
