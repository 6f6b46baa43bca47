"""The listening socket, with the limits that a request handler cannot keep because it has not been called yet.

    from the connection to the end of the first request's head, TLS included     HEADER_S_MAX
    connections of one source, and how fast new ones come                        SOURCE_CONNECTIONS_MAX, SOURCE_RATE
    connections of one member                                                    MEMBER_CONNECTIONS_MAX
    connections                                                                  CONNECTIONS_MAX
    an answer that nobody reads                                                  WRITE_S_MAX
    requests sent ahead of their answers                                         AHEAD_MAX

Whoever has not made a member's request is a stranger: one request, one answer, and the connection ends. When places are
short the stranger that came first goes first, so that any number of them cost members no more than a new connection.
A member's later requests on its connection fall under aiohttp's keep-alive time-out. Bodies are never inflated.

A source is an IPv4 address, or an IPv6 network of 64 bits. Behind a proxy all callers have the proxy's: give `behind_proxy`,
and leave the limits by source to the proxy.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from functools import partial
from typing import Any, Optional

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from nsync import metrics
from nsync.transport.budgets import Bucket, Budget, Exhausted
from nsync.transport.times import monotonic_ms

HEADER_S_MAX = 5.0

KEEPALIVE_S = 30.0
"""An idle connection; longer than a client keeps one, so that the client never writes into a closing one."""

CONNECTIONS_MAX = 512
"""Half of the 1024 descriptors that a process has by default."""

SOURCE_CONNECTIONS_MAX = 128
"""Several instances may share an address; none of them needs more than some."""

SOURCE_RATE = Budget(50, 500)
"""New connections; beyond it they are closed at once, which costs a hundredth of a handshake."""

SOURCES_MAX = 4096
"""Sources whose rate is remembered; one that is forgotten begins anew."""

MEMBER_CONNECTIONS_MAX = 16
"""A node keeps at most two; an instance may have several nodes."""

HEADER_BYTES_MAX = 2048
"""One header line or field; ours have 400 bytes."""

HEADERS_MAX = 32

AHEAD_MAX = 4
"""Our own client sends none: it waits for the answer."""

LINGER_S = 1.0
"""How long the rest of a refused body is read away, so that the client sees the answer before the reset."""

WRITE_S_MAX = 30.0
WATCH_S = 5.0

STOP_S_MAX = 5.0
"""What a request may take to end when the server stops; then it is cancelled."""

BACKLOG = 256
FULL_PAUSE_S = 0.1
"""When the process has no descriptors left: what waits in the backlog waits on."""

_LOGGER = logging.getLogger("nsync.transport.http")


def _worth_telling(record: logging.LogRecord) -> bool:
    """aiohttp tells of each malformed request with a traceback, and anybody can send any number of them: they are counted."""
    malformed = record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)
    if malformed:
        metrics.LIMIT_HITS.labels("malformed").inc()
    return not malformed


_LOGGER.addFilter(_worth_telling)

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class _Connection(asyncio.Protocol):
    """One connection: aiohttp's protocol, and what is known of it from outside."""

    def __init__(self, listener: Listener, source: str, within: web.RequestHandler) -> None:
        self.listener = listener
        self.source = source
        self.within = within
        self.member: Optional[str] = None
        self.transport: Optional[asyncio.Transport] = None
        self.task: Optional[asyncio.Task[None]] = None
        self.timer: Optional[asyncio.TimerHandle] = None
        self.is_begun = False
        self.is_introduced = False
        """Whether the request that is being answered is a member's."""
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        self._stuck_since: Optional[float] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.within.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.within.data_received(data)
        if len(getattr(self.within, "_messages", ())) > AHEAD_MAX:  # before 3.14 aiohttp takes any number of them into memory
            self.end("requests_ahead")

    def eof_received(self) -> Optional[bool]:
        self.within.eof_received()
        return None

    def pause_writing(self) -> None:
        self._stuck_since = self._loop.time()
        self.within.pause_writing()

    def resume_writing(self) -> None:
        self._stuck_since = None
        self.within.resume_writing()

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        self.within.connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    @property
    def is_stuck(self) -> bool:
        """It does not read what was sent to it; or it was closed, and does not take note."""
        if self.transport is not None and self.transport.is_closing() and self._stuck_since is None:
            self._stuck_since = self._loop.time()
        return self._stuck_since is not None and self._loop.time() - self._stuck_since > WRITE_S_MAX

    def end(self, limit: str) -> None:
        """Close it, whatever it is doing, for reaching `limit`."""
        metrics.LIMIT_HITS.labels(limit).inc()
        assert self.task is not None
        self.task.cancel()


def introduce(request: web.Request, member: str) -> None:
    """The connection of `request` is the instance `member`'s. Raises Exhausted when it has too many."""
    connection = None if request.transport is None else request.transport.get_protocol()
    if isinstance(connection, _Connection):
        connection.listener.introduce(connection, member)
        connection.is_introduced = True


class Listener:
    """Serves one application on one address."""

    def __init__(
        self,
        app: web.Application,
        header_s_max: float = HEADER_S_MAX,
        connections_max: int = CONNECTIONS_MAX,
        behind_proxy: bool = False,
        source_rate: Budget = SOURCE_RATE,
    ) -> None:
        app.middlewares.insert(0, self._answer)
        self._header_s_max = header_s_max
        self._connections_max = connections_max
        self._by_source = not behind_proxy
        self._source_rate = source_rate
        self._rates: OrderedDict[str, Bucket] = OrderedDict()
        self._sources: Counter[str] = Counter()
        self._members: Counter[str] = Counter()
        self._connections: set[_Connection] = set()
        self._strangers: OrderedDict[_Connection, None] = OrderedDict()
        self._by_handler: dict[Any, _Connection] = {}
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._tls: Optional[ssl.SSLContext] = None
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_LOGGER,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            shutdown_timeout=STOP_S_MAX,
        )

    async def start(self, host: str, port: int, tls: Optional[ssl.SSLContext] = None) -> int:
        """Listen, and return the port (for `port` 0, the one that was free). Raises OSError when the address is taken."""
        await self._runner.setup()
        self._tls = tls
        loop = asyncio.get_running_loop()
        for family, _, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            self._sockets.append(_listening(family, address))
        self._accepting = [loop.create_task(self._accept(listening)) for listening in self._sockets]
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the socket, let requests end for STOP_S_MAX, close the connections."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        await self._runner.cleanup()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def introduce(self, connection: _Connection, member: str) -> None:
        """`connection` is the instance `member`'s from now on. Raises Exhausted when it has too many."""
        if connection.member == member:
            return
        if self._members[member] >= MEMBER_CONNECTIONS_MAX:
            raise Exhausted(f"{member} has {MEMBER_CONNECTIONS_MAX} connections; it keeps at most two", "member_connections")
        if connection.member is not None:  # a proxy's
            _less(self._members, connection.member)
        connection.member = member
        self._members[member] += 1
        self._strangers.pop(connection, None)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, address = await loop.sock_accept(listening)
            except OSError as error:
                await asyncio.sleep(FULL_PAUSE_S if error.errno in _FULL else 0)
                continue
            source = _source(address)
            if self._may_enter(source):
                self._begin(connected, source)
            else:
                connected.close()
            await asyncio.sleep(0)  # accepting what has come never waits by itself

    def _may_enter(self, source: str) -> bool:
        """Whether there is a place for one more of `source`; the oldest stranger makes room if need be."""
        if self._by_source and not self._is_slow_enough(source):
            metrics.LIMIT_HITS.labels("source_rate").inc()
        elif self._by_source and self._sources[source] >= SOURCE_CONNECTIONS_MAX:
            metrics.LIMIT_HITS.labels("source_connections").inc()
        elif len(self._connections) < self._connections_max:
            return True
        elif self._strangers:
            oldest, _ = self._strangers.popitem(last=False)
            self._connections.discard(oldest)  # its place is free, although it takes a moment to end
            oldest.end("connections")
            return True
        else:
            metrics.LIMIT_HITS.labels("connections").inc()
        return False

    def _is_slow_enough(self, source: str) -> bool:
        now_ms = monotonic_ms()
        rate = self._rates.setdefault(source, Bucket(self._source_rate, now_ms))
        self._rates.move_to_end(source)
        if len(self._rates) > SOURCES_MAX:
            self._rates.popitem(last=False)
        if rate.wait_ms(now_ms):
            return False
        rate.charge(1, now_ms)
        return True

    def _begin(self, connected: socket.socket, source: str) -> None:
        server = self._runner.server
        assert server is not None, "accepts only between start and stop"
        connection = _Connection(self, source, server())
        loop = asyncio.get_running_loop()
        connection.timer = loop.call_later(self._header_s_max, connection.end, "header_time")
        connection.task = loop.create_task(self._keep(connection, connected))
        connection.task.add_done_callback(partial(self._ended, connection, connected))
        self._by_handler[connection.within] = connection
        self._connections.add(connection)
        self._strangers[connection] = None
        self._sources[source] += 1

    async def _keep(self, connection: _Connection, connected: socket.socket) -> None:
        """From the handshake to the end."""
        connection.is_begun = True
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, connected, ssl=self._tls)
        while not connection.closed.done():
            await asyncio.wait([connection.closed], timeout=WATCH_S)
            if connection.is_stuck:
                metrics.LIMIT_HITS.labels("write_time").inc()
                return

    def _ended(self, connection: _Connection, connected: socket.socket, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # a handshake that failed, or a connection that broke: theirs to know
        if connection.transport is not None and not connection.closed.done():  # one that is lost has no loop to abort on
            connection.transport.abort()
        elif not connection.is_begun:
            connected.close()
        assert connection.timer is not None
        connection.timer.cancel()
        self._connections.discard(connection)
        self._strangers.pop(connection, None)
        del self._by_handler[connection.within]
        _less(self._sources, connection.source)
        if connection.member is not None:
            _less(self._members, connection.member)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The head has come. A stranger's connection ends with the answer."""
        connection = self._by_handler.get(request.protocol)
        if connection is None:  # it has gone already
            return await handler(request)
        assert connection.timer is not None
        connection.timer.cancel()
        connection.is_introduced = False
        try:
            return _closing(await handler(request), connection)
        except web.HTTPException as error:
            _closing(error, connection)
            raise


def _closing(response: web.StreamResponse, connection: _Connection) -> web.StreamResponse:
    if not connection.is_introduced:
        response.force_close()
    return response


def _listening(family: int, address: Any) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _source(address: Any) -> str:
    host: str = address[0]
    return host if ":" not in host else socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()


def _less(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
