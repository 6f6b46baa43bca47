"""The network between the nodes: TCP forwarders that can be cut, so that a partition is a real one.

The charter's URL of an instance is a port of this network, which forwards to the node's own port. Every node dials out
from a loopback address of its own, so the network knows both ends of a connection. While an instance is cut,
connections from it and to it are reset, new ones at once and open ones within `POLL_S`. Which instances are cut stands
in a file, so that anyone may cut and heal without talking to the supervisor.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from nsync.testbed.layout import LOOPBACK, Instance, replace_text

POLL_S = 0.1
BUFFER_BYTES = 1 << 16
"""Held at most per direction; a slow reader slows the writer, as on a real network."""


def write_cut(path: Path, names: Iterable[str]) -> None:
    """Make exactly the instances `names` cut off."""
    replace_text(path, json.dumps(sorted(names)) + "\n")


def read_cut(path: Path) -> frozenset[str]:
    """The names of the instances that are cut off."""
    try:
        return frozenset(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()


class Network:
    """The forwarders of all instances. `start`, then let `watch` run, at the end `close`."""

    def __init__(self, instances: Iterable[Instance], partition: Path) -> None:
        self._instances = tuple(instances)
        self._names = {i.source_address: i.name for i in self._instances}
        self._partition = partition
        self._cut = read_cut(partition)
        self._links: dict[asyncio.Task[None], frozenset[object]] = {}
        """Each open connection's task and the names of its two ends; a caller that is no node has none."""
        self._servers: list[asyncio.Server] = []

    @property
    def open_connections(self) -> int:
        return len(self._links)

    async def start(self) -> None:
        """Listen on every instance's charter port. Raises OSError when one is taken."""
        for instance in self._instances:
            self._servers.append(await self._listen(instance))

    async def watch(self) -> None:
        """Follow the partition file; never returns."""
        while True:
            self._cut = read_cut(self._partition)
            for task, ends in self._links.items():
                if ends & self._cut:
                    task.cancel()
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        for server in self._servers:
            server.close()
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, instance: Instance) -> asyncio.Server:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address = writer.get_extra_info("peername") or ("gone already",)
            ends = frozenset((self._names.get(address[0]), instance.name))
            if ends & self._cut:
                _reset(writer)
                return

            def finished(task: asyncio.Task[None]) -> None:
                del self._links[task]
                _reset(writer)

            task = asyncio.get_running_loop().create_task(_carry(instance.node_port, reader, writer))
            self._links[task] = ends
            task.add_done_callback(finished)

        return await asyncio.start_server(accept, LOOPBACK, instance.proxy_port, limit=BUFFER_BYTES)


async def _carry(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward between the caller and `port` until both have ended; the far end is reset unless all went well."""
    try:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, port, limit=BUFFER_BYTES)
    except OSError:
        return  # the node is down, and the caller is reset
    try:
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()
            await end.wait_closed()
    except OSError:
        pass  # one end was reset, and so is the other
    finally:
        _reset(far_writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Drop the connection at once with a TCP reset, which nobody takes for the end of the data; a closed one stays closed."""
    if not writer.transport.is_closing():
        no_lingering = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_lingering)
        writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the reader ends, then tell the writer so."""
    while data := await reader.read(BUFFER_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
