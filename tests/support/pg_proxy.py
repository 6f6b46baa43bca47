"""A connection to PostgreSQL that is cut where a test wants it: a TCP proxy that knows where messages begin.

Both sides are closed at once, as when the network between them goes. What was passed on before takes effect at the server.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable, NamedTuple, Optional

LOOPBACK = "127.0.0.1"
QUERY, READY = b"Q", b"Z"
COMMIT = b"COMMIT\0"


class Cut(NamedTuple):
    """Where a connection ends."""

    here: Callable[[int, bytes, bytes], bool]
    """Of a message of the client: which one it is, of all that came since the cut was set, its type and its body."""
    forwarded: bool
    """Whether the server gets that message, and does what it says; the reply never comes back."""


def at_commit(forwarded: bool, times: int = 1) -> Cut:
    """At the `times`-th COMMIT."""
    left = [times]

    def here(number: int, kind: bytes, body: bytes) -> bool:
        left[0] -= kind == QUERY and body == COMMIT
        return left[0] == 0

    return Cut(here, forwarded)


def at_message(count: int, forwarded: bool) -> Cut:
    return Cut(lambda number, kind, body: number == count, forwarded)


class PgProxy:
    """A port of loopback behind which there is the server that listens at the unix socket `path`."""

    def __init__(self, path: str) -> None:
        self.messages = 0
        """Of clients, since the cut was set."""
        self.cuts = 0
        """How many connections were cut."""
        self._path = path
        self._cut: Optional[Cut] = None
        self._lock = threading.Lock()
        self._listener = socket.create_server((LOOPBACK, 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, database: str) -> str:
        port = self._listener.getsockname()[1]
        return f"postgresql+psycopg://postgres@{LOOPBACK}:{port}/{database}?sslmode=disable&gssencmode=disable"

    @contextmanager
    def cutting(self, cut: Optional[Cut]) -> Iterator[None]:
        """Within, the first connection that comes to `cut` is cut there; without one, messages are counted only."""
        with self._lock:
            self._cut, self.messages = cut, 0
        try:
            yield
        finally:
            with self._lock:
                self._cut = None

    def close(self) -> None:
        """End everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            _end(one)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._path)
            connection = _Connection(self, client, server)
            self._sockets += [client, server]
            for pump in (connection.to_server, connection.to_client):
                self._threads.append(threading.Thread(target=pump))
                self._threads[-1].start()

    def comes_to(self, kind: bytes, body: bytes) -> Optional[Cut]:
        """Count a message; the cut, if it is this one."""
        with self._lock:
            self.messages += 1
            cut = self._cut
            if cut is None or not cut.here(self.messages, kind, body):
                return None
            self._cut = None
            self.cuts += 1
            return cut


class _Connection:
    def __init__(self, proxy: PgProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._hushed = False
        """Whether the client is told nothing more; the connection ends when the server has done what it was asked."""

    def to_server(self) -> None:
        with suppress(OSError, EOFError):
            length = _exactly(self._client, 4)
            self._server.sendall(length + _exactly(self._client, struct.unpack("!I", length)[0] - 4))  # the start, which has no type
            while True:
                kind, body, raw = _message(self._client)
                cut = self._proxy.comes_to(kind, body)
                if cut is not None and not cut.forwarded:
                    break
                self._hushed = cut is not None
                self._server.sendall(raw)
        if not self._hushed:
            self._end()

    def to_client(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                kind, _, raw = _message(self._server)
                if not self._hushed:
                    self._client.sendall(raw)
                elif kind == READY:
                    break
        self._end()

    def _end(self) -> None:
        _end(self._client)
        _end(self._server)


def _message(source: socket.socket) -> tuple[bytes, bytes, bytes]:
    head = _exactly(source, 5)
    body = _exactly(source, struct.unpack("!I", head[1:])[0] - 4)
    return head[:1], body, head + body


def _exactly(source: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = source.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
