"""The network between processes on loopback: a TCP proxy that does to connections what networks do to them.

Whoever is asked is reached at a port of the proxy, and every caller dials from a loopback address of its own; so the proxy knows both
ends of a connection. Faults are set link by link, a link being (from, to), and may be changed at any time:

    slow        each piece arrives late, and bytes no faster than a rate
    cut         the connection ends after some bytes, in the middle of whatever it carries, half the time in order, else by a reset
    half-open   nothing more is ever said on it, not even after the faults have ended
    reset       it is reset, a new one before anything was said
    overtaken   a new one is held until a later one of the link is through, or for some seconds

Each connection draws one kind, by the seed, the link and how many connections the link had; and draws again when other faults are set.
Apart from these, `lost` holds links of which no byte arrives, whoever opened the connection: what has lost a byte stays silent
in that direction for ever.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Optional

LOOPBACK = "127.0.0.1"
BUFFER_BYTES = 1 << 16
"""Held at most per direction; a slow reader slows the writer, as on a real network."""
PIECE_S = 0.05
"""What passes at once on a slow link: so much as its rate allows in this time."""

Link = tuple[str, str]


@dataclass(frozen=True)
class Faults:
    """What a link does, and to which share of its connections."""

    shares: Mapping[str, float] = field(default_factory=dict)
    latency_s: tuple[float, float] = (0.01, 0.2)
    bytes_per_s: float = 20_000.0
    cut_bytes: tuple[int, int] = (1, 20_000)
    """After how many bytes, both ways, a connection is cut."""
    held_s: float = 2.0

    def draw(self, rng: random.Random) -> str:
        """A kind, or "" for none."""
        kinds = list(self.shares)
        return rng.choices([*kinds, ""], [*self.shares.values(), max(0.0, 1.0 - sum(self.shares.values()))])[0]

    def draw_cut(self, rng: random.Random) -> int:
        """After how many bytes; as often below the geometric mean as above."""
        low, high = self.cut_bytes
        return round(low * math.exp(rng.random() * math.log(high / low)))


NONE = Faults()


class _Cut(Exception):
    """The connection ends here."""


class _Reset(Exception):
    """It is reset here."""


class Proxy:
    """The forwarders of all who can be asked. `listen` for each, at the end `close`."""

    def __init__(self, addresses: Mapping[str, str], seed: int = 0) -> None:
        """`addresses`: from where each instance dials."""
        self.faults: dict[Link, Faults] = {}
        self.lost: set[Link] = set()
        self.carried: Counter[Link] = Counter()
        """Bytes that arrived, by link."""
        self.struck: Counter[str] = Counter()
        """How often each kind of fault took effect."""
        self.passed: dict[Link, asyncio.Event] = {}
        """Set when a connection of the link gets through."""
        self.addresses = addresses
        self._names = {address: name for name, address in addresses.items()}
        self._seed = seed
        self._count: Counter[Link] = Counter()
        self._tasks: dict[asyncio.Task[None], Link] = {}
        self._servers: list[asyncio.Server] = []

    def set(self, faults: Faults, links: Iterable[Link]) -> None:
        """Let `links` do this from now on; also if they did before, each connection draws again."""
        self.faults.update({link: replace(faults) for link in links})

    def heal(self) -> None:
        """No more faults. What is half-open or has lost bytes stays so."""
        self.faults.clear()
        self.lost.clear()

    def sever(self, name: str) -> None:
        """Reset what is open from and to `name`, as when its machine loses power: the kernel goes on sending for a dead process."""
        for task, link in self._tasks.items():
            if name in link:
                task.cancel()

    async def listen(self, name: str, port: int, node_port: int) -> None:
        """Forward `port` to the node called `name`. Raises OSError when the port is taken."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address = (writer.get_extra_info("peername") or ("gone already",))[0]
            link = (self._names.get(address, ""), name)
            task = asyncio.get_running_loop().create_task(self._connection(link, node_port).carry(reader, writer))
            self._tasks[task] = link
            task.add_done_callback(self._tasks.pop)
            task.add_done_callback(lambda _: _reset(writer))

        self._servers.append(await asyncio.start_server(accept, LOOPBACK, port, limit=BUFFER_BYTES))

    def _connection(self, link: Link, node_port: int) -> _Connection:
        self._count[link] += 1
        rng = random.Random(f"{self._seed} {link} {self._count[link]}")
        return _Connection(self, link, node_port, rng)

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Connection:
    """One connection, and what becomes of it."""

    def __init__(self, proxy: Proxy, link: Link, node_port: int, rng: random.Random) -> None:
        self._proxy = proxy
        self._link = link
        self._node_port = node_port
        self._rng = rng
        self._faults = NONE
        self._kind = ""
        self._left = 0
        self._silent = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From its beginning to its end; the caller is reset afterwards unless all went well."""
        with suppress(OSError, _Reset):
            kind = self._drawn()
            if kind == "half-open":
                await self._hush(reader)
                return
            if kind == "overtaken":
                await self._overtaken()
            self._proxy.passed.pop(self._link, asyncio.Event()).set()
            await self._forward(reader, writer)

    async def _overtaken(self) -> None:
        self._proxy.struck["overtaken"] += 1
        later = self._proxy.passed.setdefault(self._link, asyncio.Event())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(later.wait(), self._faults.held_s)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller, called = self._link
        local = (self._proxy.addresses[caller], 0) if caller else None
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._node_port, limit=BUFFER_BYTES, local_addr=local)
        pumps = [self._pump((caller, called), reader, far_writer), self._pump((called, caller), far_reader, writer)]
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        try:
            await asyncio.gather(*tasks)
            await _close(writer, far_writer)
        except _Cut:
            if self._rng.randrange(2):
                await _close(writer, far_writer)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _reset(far_writer)

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(self._piece_bytes()):
            kind = self._drawn()
            if self._silent or kind == "half-open":
                await self._hush(reader)
                return
            if link in self._proxy.lost:
                self._proxy.struck["lost"] += 1
                await _swallow(reader)
                return
            if kind == "slow":
                await self._delay(len(data))
            if kind == "cut":
                data = data[: self._left]
                self._left -= len(data)
            writer.write(data)
            await writer.drain()
            self._proxy.carried[link] += len(data)
            if kind == "cut" and not self._left:
                self._proxy.struck["cut"] += 1
                raise _Cut
        writer.write_eof()

    async def _hush(self, reader: asyncio.StreamReader) -> None:
        self._proxy.struck["half-open"] += not self._silent
        self._silent = True
        await _swallow(reader)

    async def _delay(self, size: int) -> None:
        self._proxy.struck["slow"] += 1
        await asyncio.sleep(self._rng.uniform(*self._faults.latency_s) + size / self._faults.bytes_per_s)

    def _drawn(self) -> str:
        """The kind of fault that it is subject to now. Raises _Reset."""
        faults = self._proxy.faults.get(self._link, NONE)
        if faults is not self._faults:
            self._faults, self._kind, self._left = faults, faults.draw(self._rng), faults.draw_cut(self._rng)
            if self._kind == "reset":
                self._proxy.struck["reset"] += 1
                raise _Reset
        return self._kind

    def _piece_bytes(self) -> int:
        return max(1, min(BUFFER_BYTES, int(self._faults.bytes_per_s * PIECE_S))) if self._kind == "slow" else BUFFER_BYTES


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(BUFFER_BYTES):
        pass


async def _close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Drop the connection with a TCP reset, which nobody takes for the end of the data; a closed one stays closed."""
    if not writer.transport.is_closing():
        connected: Optional[socket.socket] = writer.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
