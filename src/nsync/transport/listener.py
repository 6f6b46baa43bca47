"""The listening socket, with the limits that a request handler cannot keep because it has not been called yet.

A connection that has not sent a whole request head HEADER_S_MAX after it opened is closed, and so is every connection
beyond CONNECTIONS_MAX: a stranger holds a descriptor for some seconds, and nothing else. (Later requests on the same
connection fall under aiohttp's keep-alive time-out.) Bodies are never inflated.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Optional

from aiohttp import web
from aiohttp.typedefs import Handler

HEADER_S_MAX = 5.0
"""From the connection to the end of the first request's headers."""

KEEPALIVE_S = 30.0
"""An idle connection; longer than a client keeps one, so that the client never writes into a closing one."""

CONNECTIONS_MAX = 512
"""Half of the 1024 descriptors that a process has by default."""

HEADER_BYTES_MAX = 2048
"""One header line or field; ours have 400 bytes."""

HEADERS_MAX = 32

LINGER_S = 1.0
"""How long the rest of a refused body is read away, so that the client sees the answer before the reset."""

STOP_S_MAX = 5.0
"""What a request may take to end when the server stops; then it is cancelled."""


class Listener:
    """Serves one application on one address."""

    def __init__(self, app: web.Application, header_s_max: float = HEADER_S_MAX, connections_max: int = CONNECTIONS_MAX) -> None:
        app.middlewares.insert(0, self._heard)
        self._header_s_max = header_s_max
        self._connections_max = connections_max
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}
        self._server: Optional[asyncio.AbstractServer] = None
        self._runner = web.AppRunner(
            app,
            access_log=None,
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
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, port, ssl=tls, reuse_address=True)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the socket, let requests end for STOP_S_MAX, close the connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()

    def _accept(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None, "accepts only between start and stop"
        grace_s = self._header_s_max if len(server.connections) < self._connections_max else 0.0
        protocol = server()
        self._silent[protocol] = asyncio.get_running_loop().call_later(grace_s, self._give_up, protocol)
        return protocol

    def _give_up(self, protocol: web.RequestHandler) -> None:
        del self._silent[protocol]
        protocol.force_close()

    @web.middleware
    async def _heard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timer = self._silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        return await handler(request)
