"""One exchange with one peer: hello; notices, both ways; pull what it has and this instance has not; push what it lacks.

In sync it is one round trip and some bytes. It resumes by itself: each batch is durable when the next one is read, and
the next exchange begins from the heads of then. What one side refuses does not keep the rest from passing; it makes the
exchange fail at its end, with the reason, so that the pair tries again later and not in a loop. A gap is no such reason:
whoever lacks what comes before asks for it. Nor is it that too much waits here to be applied: the stream then waits too, and its
sender with it.

What others are asked for already is left to them (pulls.Pulls). What a peer lacks is pushed when it is little; else the peer is
told, and asks whom it likes for it, unless it cannot reach this instance.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from typing import Any, Callable, Optional, Protocol

from nsync.errors import NsyncError, ProtocolError, RejectedSegment
from nsync.log.stored import Head, Receipt
from nsync.transport import notices, session, wire
from nsync.transport.notices import NoticeDoor
from nsync.transport.ports import LogDoor, Take
from nsync.transport.pulls import Pulls
from nsync.transport.times import monotonic_ms

PUSH_OPS_MAX = 4096
"""One full segment: who lacks more may ask several peers for it at once."""
PUSH_BYTES_MAX = 1 << 18
"""A push that breaks is lost as a whole, and may bring what is being pulled already; of a pull all stays that came whole."""

FAULTS_MAX = 256
"""Refused segments in one exchange: a mistake of somebody else's passes, a flood does not."""

WAITED_MS_MAX = 20_000
"""How long a stream waits for room, in all: some batches are here before the next byte is read, and a sender that is not read for 30 s
hangs up (listener.WRITE_S_MAX)."""


class Peer(notices.Peer, Protocol):
    """What is asked of one peer: `client.PeerClient`, or a simulation's."""

    async def hello(self, digest: bytes, since: Optional[bytes]) -> wire.HelloReply:
        """Whether the peer's heads have `digest`; if not, its heads, or what changed in them since they had the digest `since`."""

    async def tell(self, heads: Sequence[Head]) -> bool:
        """Say that these heads are new here. Whether the peer will ask for them."""

    async def pull(self, have: session.Have, take: Take) -> None:
        """Give `take` what the peer has beyond `have` of the authors in it, until it wants no more."""

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        """Give the peer one batch of frames to store."""

    async def ask(self, verb: str, body: bytes, bytes_max: int, decode: Callable[[bytes], Any], s_max: float) -> Any:
        """What `decode` makes of the answer to another question, of at most `bytes_max`."""


class Exchange:
    """Run it once. Its numbers are true also when it ends early."""

    def __init__(
        self,
        client: Peer,
        log: LogDoor,
        me: bytes,
        authors: Collection[bytes],
        pulls: Pulls,
        room: Callable[[], Awaitable[bool]],
        before: Optional[Sequence[Head]] = None,
        door: Optional[NoticeDoor] = None,
    ) -> None:
        """`authors`: all of the charter; of nobody else is anything asked for. `room`: returns when something was applied, or with False
        after a while; `before`: the peer's heads, as it told them last; `door`: to the notices, where there are any."""
        self._notices = door
        self._client = client
        self._log = log
        self._me = me
        self._authors = authors
        self._pulls = pulls
        self._room = room
        self._before = before
        self._claimed: Collection[bytes] = ()
        self._heads: frozenset[Head] = frozenset()
        self._stopped = False
        self._waited_ms = 0
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
        self.left: Sequence[Head] = ()
        """What the peer has, and was not asked for, since others are, or since too much waits here."""
        self._failure: Optional[NsyncError] = None
        self._faults = 0

    async def run(self) -> None:
        """Raises TransportError, ProtocolError, NotAuthorised, or RejectedSegment when either side refused a segment."""
        mine = await self._log.heads()
        self.forked = session.forked(mine)
        if await self._hello(mine):
            return
        if self._notices is not None:
            await self._notices.exchange(self._client)
        theirs = self.theirs or ()
        unknown = await self._unknown(theirs)
        if unknown:
            await self._pull(unknown)
            mine, unknown = await self._log.heads(), await self._log.unknown(unknown)
        await self._give(mine, session.behind(mine, theirs, unknown), theirs)
        if self._failure is not None:
            raise self._failure

    async def fetch(self, heads: Sequence[Head]) -> None:
        """Pull what the peer has told of. Raises as `run`."""
        await self._pull(await self._unknown(heads))
        if self._failure is not None:
            raise self._failure

    async def _hello(self, mine: Sequence[Head]) -> bool:
        """Whether the peer has the same heads and notices."""
        since = None if self._before is None else session.digest(self._before)
        told = b"" if self._notices is None else await self._notices.digest()
        reply = await self._client.hello(session.covering(mine, told), since)
        self.answered = True
        if reply.heads is None:
            theirs: Sequence[Head] = mine
        elif reply.changed and self._before is None:
            raise ProtocolError(f"{self._client.name} tells what changed, and was asked for all")
        else:
            theirs = session.merged(self._before or (), reply.heads) if reply.changed else reply.heads
        self.theirs = self._before = theirs
        if self._notices is not None:
            self._notices.asked(self._client.name, theirs)
        return reply.heads is None

    async def _unknown(self, theirs: Sequence[Head]) -> list[Head]:
        """Those that are not here, and may be."""
        return await self._log.unknown([head for head in theirs if head.author in self._authors])

    async def _pull(self, missing: Sequence[Head]) -> None:
        """Ask for the heads that they announced, as far as nobody else is asked, until they are here or nothing more comes."""
        name = self._client.name
        while missing:
            self._heads = frozenset(await self._log.heads())
            weights = session.missing_ops(self._heads, missing)
            claimed = self._pulls.claim(name, weights, monotonic_ms())
            if not claimed:
                self.left = missing
                return
            try:
                goes_on = await self._pull_claimed(claimed, [head for head in missing if head.author in claimed])
            finally:
                self._pulls.give_back(name, claimed)
            missing = await self._log.unknown(missing)
            if not goes_on:
                self.left = missing if self._failure is None else ()
                return

    async def _pull_claimed(self, claimed: Collection[bytes], heads: Sequence[Head]) -> bool:
        """Ask once for `heads`; whether to go on with others."""
        wanted = await self._log.unknown(heads)  # somebody else may have brought them before they were claimed
        if not wanted:
            return True
        before, self._claimed, self._stopped = self.pulled, claimed, False
        await self._ask({head.author for head in wanted})
        self.answered = True
        left = await self._log.unknown(wanted)
        if len(left) == len(wanted) and self.pulled == before and not self._stopped:
            author = left[0].author.hex()
            self._fail(ProtocolError(f"{self._client.name} announced segments of author {author} that did not come"))
            return False
        return not self._stopped

    async def _ask(self, authors: Collection[bytes]) -> None:
        """Pull these logs; one's own before the others, since nothing more may be signed once it is here (R4.6)."""
        have = await self._log.locators(authors)
        own = {self._me: have.pop(self._me)} if self._me in have else {}
        for question in (*session.questions(own), *session.questions(have)):
            if not self._stopped:
                self._waited_ms = 0
                await self._client.pull(question, self._take)

    async def _take(self, frames: Sequence[bytes]) -> bool:
        """Store a batch; whether more is wanted. Where too much waits, the stream waits too, so nothing is fetched twice."""
        receipt = await self._receive(frames)
        self.pulled += receipt.stored
        self._faults += len(receipt.faults)
        if receipt.faults:
            reason = wire.clean(receipt.faults[0])
            self._fail(RejectedSegment(f"{self._client.name} sent a segment that is refused here: {reason}"))
        if receipt.full:
            self._pulls.rest(self._claimed, monotonic_ms())
        moved = await self._moved() if receipt.stored else ()
        goes_on = self._pulls.renew(self._client.name, self._claimed, moved, monotonic_ms())
        self._stopped = self._stopped or receipt.full or not goes_on or self._faults > FAULTS_MAX
        return not self._stopped

    async def _receive(self, frames: Sequence[bytes]) -> Receipt:
        receipt, begun_ms = await self._log.receive(frames, self._client.name), monotonic_ms()
        while receipt.full and monotonic_ms() - begun_ms + self._waited_ms < WAITED_MS_MAX and await self._room():
            again = await self._log.receive(frames, self._client.name)
            receipt = Receipt(receipt.stored + again.stored, again.rejected)
        self._waited_ms += monotonic_ms() - begun_ms
        return receipt

    async def _moved(self) -> set[bytes]:
        """The authors of whom there is more here than when this was asked last."""
        before, self._heads = self._heads, frozenset(await self._log.heads())
        return {head.author for head in self._heads - before}

    async def _give(self, mine: Sequence[Head], have: session.Have, theirs: Sequence[Head]) -> None:
        """See that they get what they lack: pushed when it is little, else by their own questions if they can ask."""
        lacking = sorted({head for head in mine if head.author in have}.difference(theirs))
        if await self._is_little(have, lacking, theirs) or not await self._client.tell(lacking):
            await self._push(have, theirs, lacking)

    async def _is_little(self, have: session.Have, lacking: Collection[Head], theirs: Sequence[Head]) -> bool:
        if sum(session.missing_ops(theirs, lacking).values()) > PUSH_OPS_MAX:
            return False
        batch = await self._log.segments_after(have, PUSH_BYTES_MAX) if have else []
        ends = {Head(segment.author, segment.last, segment.hash) for segment in batch}
        return ends.issuperset(lacking) and sum(len(segment.frame) for segment in batch) <= PUSH_BYTES_MAX

    async def _push(self, have: session.Have, theirs: Sequence[Head], lacking: Collection[Head]) -> None:
        """Send batches until they have all, or can ask by now; or stop when they take nothing of one, the rest they can pull."""
        left = set(lacking)
        while have:
            batch = await self._log.segments_after(have, PUSH_BYTES_MAX)
            if not batch:
                return
            have = session.advance(have, batch)
            left -= {Head(segment.author, segment.last, segment.hash) for segment in batch}
            receipt = await self._client.push([segment.frame for segment in batch])
            self.pushed += receipt.stored
            if receipt.faults:
                self._fail(RejectedSegment(f"{self._client.name} refuses a segment that is stored here: {receipt.faults[0]}"))
            if not receipt.stored:
                if not receipt.rejected:
                    await self._check_moved(theirs)
                return
            if left and await self._client.tell(sorted(left)):
                return

    async def _check_moved(self, before: Sequence[Head]) -> None:
        """What they lacked they have: somebody else brought it, and their heads are others; or they never lacked it."""
        if not await self._hello(await self._log.heads()) and self.theirs == before:
            self._fail(ProtocolError(f"{self._client.name} announces less than it has: it takes nothing of what it lacks"))

    def _fail(self, failure: NsyncError) -> None:
        """Fail at the end. The first reason is kept; the others most often follow from it."""
        self._failure = self._failure or failure
