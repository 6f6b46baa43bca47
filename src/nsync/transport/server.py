"""What this instance answers to its peers: an aiohttp application.

    GET  /ping              anybody     {"version": …}
    POST /nsync/v1/hello    members     in sync, or my heads
    POST /nsync/v1/pull     members     the segments that follow what the caller has, streamed
    POST /nsync/v1/push     members     the receipt for the segments that the caller sent

What a request passes before it is answered stands in `transport.gates`. The answer to a pull waits until the
caller has read what was sent (back-pressure), so the log is never in memory as a whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Callable, NamedTuple, Optional

from aiohttp import web

from nsync import __version__
from nsync.authority.charter import Charter, Instance
from nsync.transport import session, wire
from nsync.transport.gates import Gates
from nsync.transport.metering import Metered
from nsync.transport.notices import NoticeDoor
from nsync.transport.peers import CLOCK_HEADER, Meter
from nsync.transport.ports import LogDoor, OnReceived, SegmentLog
from nsync.transport.roster import Roster
from nsync.transport.times import ASIDE_BYTES_MIN, aside, wall_ms

Answer = Callable[[web.Request, Instance, bytes], Awaitable[web.StreamResponse]]
"""Given the request, the member that makes it, and its body."""


class Verb(NamedTuple):
    """One kind of request that members may make: POST to `wire.PATH` and its name."""

    name: str
    bytes_max: int
    """Of the body."""
    answer: Answer
    streams: bool = False
    """Whether the answer is a stream, which may take minutes: it has a place of its own."""


class Server:
    """Answers hello, pull and push from one segment log."""

    def __init__(
        self,
        charter: Charter,
        me: Instance,
        log: SegmentLog,
        executor: Optional[Executor],
        on_received: OnReceived,
        now_ms: Callable[[], int] = wall_ms,
        body_s_max: float = wire.BODY_S_MAX,
        verbs: Iterable[Verb] = (),
        meters: Optional[Mapping[str, Meter]] = None,
        notices: Optional[NoticeDoor] = None,
        on_called: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`on_received`: usually `Gossip.received`, which tells the node, and soon some other peers. `verbs`: others than the log's.
        `meters`: of the gossip, which count what peers send and get here too; `notices`: its door, if any. `on_called`: is told who
        asks, usually `Gossip.called`."""
        self._log = LogDoor(log, Metered(executor) if executor is not None else None, on_received)
        self._roster = Roster(charter)
        self._told = session.Told()
        self._gates = Gates(charter, me, now_ms, body_s_max)
        self._now_ms = now_ms
        self._meters = meters or {}
        self._notices = notices
        self._on_called = on_called
        self._verbs = (
            Verb("hello", wire.HELLO_BYTES_MAX, self._hello),
            Verb("pull", wire.HAVE_BYTES_MAX, self._pull, streams=True),
            Verb("push", wire.BODY_BYTES_MAX, self._push),
            *verbs,
        )

    def app(self) -> web.Application:
        """A new application; serve it with `Listener`. Other routes may be added to it."""
        app = web.Application()
        app.on_response_prepare.append(self._tell_time)
        app.router.add_get("/ping", self._ping, allow_head=False)
        for verb in self._verbs:
            app.router.add_post(wire.PATH + verb.name, partial(self._serve, verb))
        return app

    async def _tell_time(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers[CLOCK_HEADER] = str(self._now_ms())

    async def _ping(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"version": __version__})

    async def _serve(self, verb: Verb, request: web.Request) -> web.StreamResponse:
        try:
            async with self._gates.passed(request, verb.bytes_max, verb.streams) as (caller, body):
                self._on_called(caller.name)
                response = await verb.answer(request, caller, body)
                self._count(caller.name, len(body), response)
                return response
        except web.HTTPException:
            raise
        except Exception as error:  # the log is a port: whatever it raises, the peer comes again
            return await self._gates.refusal(request, error)

    def _count(self, name: str, received: int, response: web.StreamResponse) -> None:
        if name in self._meters:
            self._meters[name].count(received, response.body_length or response.content_length or 0)

    async def _hello(self, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        hello = wire.decode_hello(body)
        notices = b"" if self._notices is None else await self._notices.digest()
        reply = self._told.answer(caller.name, hello, await self._log.heads(), notices)
        return web.Response(body=wire.encode_hello_reply(reply, self._roster if hello.roster == self._roster.digest else None))

    async def _pull(self, request: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        have = await aside(len(body), partial(wire.decode_have, body))
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        try:
            await response.prepare(request)
            await asyncio.wait_for(self._stream(response, have), wire.PULL_S_MAX)
        except (ConnectionError, asyncio.TimeoutError) as error:
            why = error or f"{wire.PULL_S_MAX:g} s are over"
            self._gates.tell(caller.name, logging.INFO, f"{caller.name} did not read the answer to its pull to the end: {why}")
            _abort(request)
        except Exception:
            if response.prepared:
                _abort(request)
            raise
        return response

    async def _stream(self, response: web.StreamResponse, have: session.Have) -> None:
        """Send what follows `have`, batch by batch, up to PULL_BYTES_MAX."""
        writer = wire.FrameWriter()
        while writer.bytes + wire.BODY_BYTES_MAX <= wire.PULL_BYTES_MAX:
            batch = await self._log.segments_after(have, wire.BATCH_BYTES_MAX)
            if not batch:
                break
            have = session.advance(have, batch)
            frames = [segment.frame for segment in batch]
            await response.write(await aside(sum(map(len, frames)), partial(writer.write_all, frames)))
        await response.write_eof(writer.finish())

    async def _push(self, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        frames = await aside(ASIDE_BYTES_MIN, partial(wire.decode_frames, body, wire.BODY_BYTES_MAX))
        with self._gates.segments(caller.name, frames):
            receipt = await self._log.receive(frames, caller.name)
        self._gates.brought(caller.name, len(frames), receipt.stored)
        return web.Response(body=wire.encode_receipt(receipt))


def _abort(request: web.Request) -> None:
    """Hang up: what was sent is not all, and nothing else can be said any more."""
    if request.transport is not None:
        request.transport.abort()
