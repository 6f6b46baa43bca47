"""What this instance asks of one peer: hello, pull, push.

Dials the URL that the charter gives for the peer, and nothing else: no proxies from the environment, no redirects, no
cookies. Every wait and every length is bounded. What goes wrong becomes

    TransportError   not reached, too slow, busy             try again later
    ProtocolError    answered with what breaks the protocol  report it to the peer's operator
    NotAuthorised    refused who we are                      compare charter, key and clock

with a text that names the peer, its URL and the way out.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Callable, Optional, TypeVar

import aiohttp

from nsync.authority.charter import Charter, Instance
from nsync.errors import NotAuthorised, NsyncError, ProtocolError, TransportError
from nsync.log.stored import Receipt
from nsync.transport import wire
from nsync.transport.peers import CLOCK_HEADER, Meter
from nsync.transport.ports import Take
from nsync.transport.requests import NONCE_BYTES, Signer, authorization
from nsync.transport.session import Have
from nsync.transport.times import monotonic_ms, wall_ms
from nsync.transport.tls import client_context

CONNECT_S_MAX = 10.0
IDLE_S_MAX = 30.0
"""Between two reads; the peer may be waiting for its database."""

HELLO_S_MAX = 30.0
KEEPALIVE_S = 20.0
"""Shorter than the server's, so that a request never meets a connection that is being closed."""

PEER_CONNECTIONS_MAX = 2

T = TypeVar("T")


def open_session(source_address: Optional[str] = None) -> aiohttp.ClientSession:
    """The HTTP session for all peers; `source_address`: the local address to dial from. Close it after use."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # a slow peer must not take another's connection
            limit_per_host=PEER_CONNECTIONS_MAX,
            keepalive_timeout=KEEPALIVE_S,
            local_addr=None if source_address is None else (source_address, 0),
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


class PeerClient:
    """One peer, as this instance sees it."""

    def __init__(
        self, http: aiohttp.ClientSession, charter: Charter, me: Instance, peer: Instance, signer: Signer, meter: Optional[Meter] = None
    ) -> None:
        self.name = peer.name
        self._meter = meter or Meter()
        self._http = http
        self._federation = charter.federation
        self._me = me
        self._peer = peer
        self._signer = signer
        self._tls = client_context(peer)

    async def hello(self, digest: bytes) -> wire.HelloReply:
        """Whether the peer's heads have `digest`, and its heads if not."""
        return await self.ask("hello", wire.encode_hello(digest), wire.HEADS_BYTES_MAX, wire.decode_hello_reply)

    async def pull(self, have: Have, take: Take) -> None:
        """Give `take` what the peer has beyond `have`. When the stream breaks, what came whole before is taken first."""
        async with self._post("pull", wire.encode_have(have), wire.PULL_S_MAX) as response:
            batch = _Batch(take)
            try:
                await _read_frames(response, batch)
            except (NsyncError, aiohttp.ClientError, asyncio.TimeoutError):
                await batch.end()
                raise
            await batch.end()

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        """Give the peer one batch of frames (BATCH_BYTES_MAX) to store."""
        return await self.ask("push", wire.encode_frames(frames), wire.RECEIPT_BYTES_MAX, wire.decode_receipt, 2 * wire.BODY_S_MAX)

    async def ask(self, verb: str, body: bytes, bytes_max: int, decode: Callable[[bytes], T], s_max: float = HELLO_S_MAX) -> T:
        """What `decode` makes of the answer, of at most `bytes_max`, to a request that is answered with one message (server.Verb)."""
        async with self._post(verb, body, s_max) as response:
            return decode(await _read(response, bytes_max))

    @asynccontextmanager
    async def _post(self, verb: str, body: bytes, total_s_max: float) -> AsyncIterator[aiohttp.ClientResponse]:
        path = wire.PATH + verb
        url = self._peer.url + path
        header = authorization(
            self._signer,
            self._federation,
            self._me.author,
            self._peer.author,
            "POST",
            path,
            body,
            wall_ms(),
            secrets.token_bytes(NONCE_BYTES),
        )
        asked_ms = monotonic_ms()
        try:
            async with self._http.post(
                url,
                data=io.BytesIO(body),  # aiohttp sends it in pieces
                headers={"Authorization": header},
                allow_redirects=False,
                ssl=self._tls,
                timeout=aiohttp.ClientTimeout(total=total_s_max, sock_connect=CONNECT_S_MAX, sock_read=IDLE_S_MAX),
            ) as response:
                if verb == "hello":
                    self._meter.answered(asked_ms, monotonic_ms(), response.headers.get(CLOCK_HEADER, ""))
                try:
                    await self._check(response)
                    yield response
                finally:
                    self._meter.count(response.content.total_bytes, len(body))
        except asyncio.TimeoutError as error:
            raise TransportError(f"{self.name} ({url}) did not answer in time; is it overloaded, or the network slow?") from error
        except aiohttp.ClientError as error:
            raise TransportError(f"{self.name} ({url}) could not be reached: {error or type(error).__name__}; is it running?") from error
        except ProtocolError as error:
            raise ProtocolError(f"{self.name} ({url}): {error}") from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what the status means, unless it is 200."""
        if response.status == 200 and "Content-Encoding" not in response.headers:
            return
        if response.status == 401:
            raise NotAuthorised(
                f"{self.name} ({response.url}) does not accept our requests; compare the charter, our key and the clocks (its log says why)"
            )
        text = wire.clean((await _read(response, wire.HEADS_BYTES_MAX)).decode("ascii", "replace"))
        if response.status in (408, 429) or response.status >= 500:
            raise TransportError(f"{self.name} ({response.url}) is not able to answer now: {response.status} {text}")
        raise ProtocolError(f"unexpected answer {response.status}: {text}")


class _Batch:
    """Gathers frames for one `take`."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._frames: list[bytes] = []
        self._bytes = 0

    async def add(self, frame: bytes) -> None:
        if self._bytes + len(frame) > wire.BATCH_BYTES_MAX or len(self._frames) >= wire.BATCH_FRAMES_MAX:
            await self.end()
        self._frames.append(frame)
        self._bytes += len(frame)

    async def end(self) -> None:
        frames, self._frames, self._bytes = self._frames, [], 0
        if frames:
            await self._take(frames)


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The whole body, at most `bytes_max`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > bytes_max:
            raise ProtocolError(f"answered more than {bytes_max} bytes")
    return bytes(body)


async def _read_frames(response: aiohttp.ClientResponse, batch: _Batch) -> None:
    reader = wire.FrameReader(wire.PULL_BYTES_MAX)
    async for chunk in response.content.iter_any():
        for frame in reader.feed(chunk):
            await batch.add(frame)
    reader.close()
