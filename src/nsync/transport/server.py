"""What this instance answers to its peers: an aiohttp application.

    GET  /ping              anybody     {"version": …}
    POST /nsync/v1/hello    members     in sync, or my heads
    POST /nsync/v1/pull     members     the segments that follow what the caller has, streamed
    POST /nsync/v1/push     members     the receipt for the segments that the caller sent

A request passes these gates in this order, and what fails at one has cost nothing of the next:

    who asks          401, empty: a stranger learns nothing, not even why
    a free place      503, try later
    no encoding       415
    size, time        413, 408
    the body is the signed one   401
    the message       400 with a text

Memory: at most EXCHANGES_MAX bodies of BODY_BYTES_MAX, or a batch of the log each. The answer to a pull waits until the
caller has read what was sent (back-pressure), so the log is never in memory as a whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Callable, NamedTuple, Optional

from aiohttp import web

from nsync import __version__
from nsync.authority.charter import Charter, Instance
from nsync.errors import NotAuthorised, NsyncError, ProtocolError, TransportError
from nsync.transport import session, wire
from nsync.transport.peers import CLOCK_HEADER, Meter
from nsync.transport.ports import LogDoor, OnReceived, SegmentLog
from nsync.transport.requests import Verifier, body_digest
from nsync.transport.times import wall_ms

logger = logging.getLogger("nsync.transport.server")

EXCHANGES_MAX = 16
"""Requests of members answered at the same time: bounds memory, and the queue before the log."""

PEER_EXCHANGES_MAX = 2
"""Of these, for one peer, so that none can take all places."""

RETRY_AFTER_S = 1

Answer = Callable[[web.Request, Instance, bytes], Awaitable[web.StreamResponse]]
"""Given the request, the member that makes it, and its body."""


class Verb(NamedTuple):
    """One kind of request that members may make: POST to `wire.PATH` and its name."""

    name: str
    bytes_max: int
    """Of the body."""
    answer: Answer


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
    ) -> None:
        """`on_received`: usually `Gossip.received`, which tells the node, and soon some other peers. `verbs`: others than the log's.
        `meters`: of the gossip, which count what peers send and get here too."""
        self._log = LogDoor(log, executor, on_received)
        self._verifier = Verifier(charter, me.author)
        self._now_ms = now_ms
        self._body_s_max = body_s_max
        self._busy: Counter[str] = Counter()
        self._meters = meters or {}
        self._verbs = (
            Verb("hello", wire.HELLO_BYTES_MAX, self._hello),
            Verb("pull", wire.HAVE_BYTES_MAX, self._pull),
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
            caller = self._verifier.check(request.headers.get("Authorization", ""), request.method, request.path, self._now_ms())
            with self._place(caller.instance.name):
                body = await self._body(request, verb.bytes_max)
                if body_digest(body) != caller.body_digest:
                    raise NotAuthorised(f"{caller.instance.name}: the body is not the one that was signed")
                response = await verb.answer(request, caller.instance, body)
                self._count(caller.instance.name, len(body), response)
                return response
        except NotAuthorised as error:
            logger.info("refused a request from %s: %s", request.remote, error)
            response = web.Response(status=401)
            response.force_close()  # and not a byte of the body is read
            return response
        except ProtocolError as error:
            logger.warning("%s %s: %s", caller.instance.name, request.path, error)
            return web.Response(status=400, text=wire.clean(str(error)))
        except TransportError as error:
            return web.Response(status=503, text=str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
        except NsyncError:
            logger.exception("could not answer %s %s", caller.instance.name, request.path)
            return web.Response(status=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    def _count(self, name: str, received: int, response: web.StreamResponse) -> None:
        if name in self._meters:
            self._meters[name].count(received, response.body_length or response.content_length or 0)

    @contextmanager
    def _place(self, name: str) -> Iterator[None]:
        """One of the places for requests. Raises TransportError when all are taken."""
        if self._busy[name] >= PEER_EXCHANGES_MAX or sum(self._busy.values()) >= EXCHANGES_MAX:
            raise TransportError(f"busy with {self._busy[name]} requests of {name} and {sum(self._busy.values())} in all")
        self._busy[name] += 1
        try:
            yield
        finally:
            self._busy[name] -= 1

    async def _body(self, request: web.Request, bytes_max: int) -> bytes:
        if "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(text="bodies are sent without Content-Encoding")
        try:
            return await asyncio.wait_for(_read(request, bytes_max), self._body_s_max)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body took longer than {self._body_s_max:g} s") from None
        except ConnectionError:
            raise web.HTTPBadRequest(text="the body was cut short") from None

    async def _hello(self, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        hello = wire.decode_hello(body)
        heads = await self._log.heads()
        same = session.digest(heads) == hello.digest
        return web.Response(body=wire.encode_hello_reply(None if same else heads))

    async def _pull(self, request: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        have = wire.decode_have(body)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        try:
            await asyncio.wait_for(self._stream(response, have), wire.PULL_S_MAX)
        except (ConnectionError, asyncio.TimeoutError) as error:
            logger.info("%s did not read the answer to its pull to the end: %s", caller.name, error or f"{wire.PULL_S_MAX:g} s are over")
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _stream(self, response: web.StreamResponse, have: session.Have) -> None:
        """Send what follows `have`, batch by batch, up to PULL_BYTES_MAX."""
        writer = wire.FrameWriter()
        while writer.bytes + wire.BODY_BYTES_MAX <= wire.PULL_BYTES_MAX:
            batch = await self._log.segments_after(have, wire.BATCH_BYTES_MAX)
            if not batch:
                break
            have = session.advance(have, batch)
            for segment in batch:
                await response.write(writer.write(segment.frame))
            await response.write(writer.flush())
        await response.write_eof(writer.finish())

    async def _push(self, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        frames = wire.decode_frames(body, wire.BODY_BYTES_MAX)
        receipt = await self._log.receive(frames, caller.name)
        if receipt.rejected:
            first = wire.clean(receipt.rejected[0])
            logger.warning("%s pushed %d segments that were refused; the first: %s", caller.name, len(receipt.rejected), first)
        return web.Response(body=wire.encode_receipt(receipt))


async def _read(request: web.Request, bytes_max: int) -> bytes:
    """The body, of which never more than `bytes_max` and one read buffer are held. Raises HTTPRequestEntityTooLarge."""
    body = bytearray()
    announced = request.content_length or 0
    if announced <= bytes_max:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > bytes_max:
                break
    if max(announced, len(body)) > bytes_max:
        raise web.HTTPRequestEntityTooLarge(max_size=bytes_max, actual_size=max(announced, len(body)))
    return bytes(body)
