"""What this instance asks of one peer: hello, tell, pull, push.

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
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Callable, Optional, TypeVar, Union

import aiohttp

from nsync.authority.charter import Charter, Instance
from nsync.errors import NotAuthorised, NsyncError, ProtocolError, TransportError
from nsync.log.stored import Head, Receipt
from nsync.transport import wire
from nsync.transport.notices import NOTICES_BYTES_MAX, NOTICES_S_MAX, VERB, Word, decode, encode
from nsync.transport.peers import CLOCK_HEADER, Meter
from nsync.transport.ports import Take
from nsync.transport.requests import NONCE_BYTES, Signer, authorization
from nsync.transport.roster import Roster
from nsync.transport.session import Have
from nsync.transport.times import ASIDE_BYTES_MIN, aside, monotonic_ms, wall_ms
from nsync.transport.tls import client_context

CONNECT_S_MAX = 10.0
IDLE_S_MAX = 30.0
"""Between two reads; the peer may be waiting for its database."""

HELLO_S_MAX = 30.0
TELL_S_MAX = 10.0
"""Who does not take news in this time hears of it otherwise."""
PIECE_BYTES_MIN = 1 << 20
"""Inflated at once: a piece is one frame longer at most."""
AHEAD_PIECES_MAX = 2
"""Of a stream, beyond the batch that is being stored: so a pull holds some 8 MiB."""
BATCH_MS_MAX = 1000
"""What came is stored at least so often, however slowly it comes."""
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
        self._roster = Roster(charter)

    async def hello(self, digest: bytes, since: Optional[bytes] = None) -> wire.HelloReply:
        """Whether the peer's heads have `digest`; if not, its heads, or what changed in them since they had the digest `since`."""
        question = wire.encode_hello(digest, self._roster.digest, since)
        return await self.ask("hello", question, wire.HEADS_BYTES_MAX, partial(wire.decode_hello_reply, roster=self._roster))

    async def tell(self, heads: Sequence[Head]) -> bool:
        """Say that these heads are new here. Whether the peer will ask for them."""
        return await self.ask("tell", wire.encode_tell(heads), wire.TELL_REPLY_BYTES_MAX, wire.decode_tell_reply, TELL_S_MAX)

    async def notices(self, word: Word) -> Word:
        """What the peer says to `word`."""
        return await self.ask(VERB, encode(word), NOTICES_BYTES_MAX, decode, NOTICES_S_MAX)

    async def pull(self, have: Have, take: Take) -> None:
        """Give `take` what the peer has beyond `have`, until it wants no more. When the stream breaks, what came whole is taken first."""
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
        body = await aside(sum(map(len, frames)), partial(wire.encode_frames, frames))
        return await self.ask("push", body, wire.RECEIPT_BYTES_MAX, wire.decode_receipt, 2 * wire.BODY_S_MAX)

    async def ask(self, verb: str, body: bytes, bytes_max: int, decode: Callable[[bytes], T], s_max: float = HELLO_S_MAX) -> T:
        """What `decode` makes of the answer, of at most `bytes_max`, to a request that is answered with one message (server.Verb)."""
        async with self._post(verb, body, s_max) as response:
            answer = await _read(response, bytes_max)
            return await aside(len(answer), partial(decode, answer))

    @asynccontextmanager
    async def _post(self, verb: str, body: bytes, total_s_max: float) -> AsyncIterator[aiohttp.ClientResponse]:
        path = wire.PATH + verb
        url = self._peer.url + path
        header = await aside(
            len(body),
            partial(
                authorization,
                self._signer,
                self._federation,
                self._me.author,
                self._peer.author,
                "POST",
                path,
                body,
                wall_ms(),
                secrets.token_bytes(NONCE_BYTES),
            ),
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
        self._begun_ms = monotonic_ms()

    async def add(self, frames: Sequence[bytes]) -> bool:
        """Whether more is wanted."""
        for frame in frames:
            full = self._bytes + len(frame) > wire.BATCH_BYTES_MAX or len(self._frames) >= wire.BATCH_FRAMES_MAX
            if full and not await self.end():
                return False
            self._frames.append(frame)
            self._bytes += len(frame)
        return monotonic_ms() - self._begun_ms < BATCH_MS_MAX or await self.end()

    async def end(self) -> bool:
        frames, self._frames, self._bytes = self._frames, [], 0
        wanted = await self._take(frames) if frames else True
        self._begun_ms = monotonic_ms()
        return wanted


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The whole body, at most `bytes_max`."""
    body = bytearray()
    while chunk := await _chunk(response):
        body += chunk
        if len(body) > bytes_max:
            raise ProtocolError(f"answered more than {bytes_max} bytes")
    return bytes(body)


async def _chunk(response: aiohttp.ClientResponse) -> bytes:
    """What has come, at least a byte; empty at the end. aiohttp's own timer stops when a chunk has no length, and nobody is told."""
    timer = asyncio.get_running_loop().call_later(IDLE_S_MAX, response.content.set_exception, asyncio.TimeoutError())
    try:
        return await response.content.readany()
    finally:
        timer.cancel()


async def _read_frames(response: aiohttp.ClientResponse, batch: _Batch) -> None:
    async with _arriving(response) as next_frames:
        while (frames := await next_frames()) is not None:
            if not await batch.add(frames):
                return


@asynccontextmanager
async def _arriving(response: aiohttp.ClientResponse) -> AsyncIterator[Callable[[], Awaitable[Optional[list[bytes]]]]]:
    """The next frames, or None at the end. They are inflated aside, some ahead of what is stored, and nothing before there is room.

    What was received counts, also when the connection breaks right after it. aiohttp forgets what nobody has read by then; so
    each read takes all there is, and nothing more is received before that is inflated.
    """
    queue: asyncio.Queue[Union[list[bytes], Exception, None]] = asyncio.Queue(AHEAD_PIECES_MAX)
    reader = wire.FrameReader(wire.PULL_BYTES_MAX)

    async def read() -> None:
        try:
            while chunk := await _chunk(response):
                protocol = response.connection.protocol if response.connection is not None else None
                if protocol is not None:
                    protocol.pause_reading()
                pieces, whole = reader.feed(chunk), False
                while not whole:
                    frames, whole = await aside(ASIDE_BYTES_MIN, partial(_some, pieces))
                    await queue.put(frames)
                if protocol is not None:
                    protocol.resume_reading()
            reader.close()
            await queue.put(None)
        except Exception as error:  # whatever it was: who waits for frames would wait for ever
            await queue.put(error)

    async def next_frames() -> Optional[list[bytes]]:
        item = await queue.get()
        if isinstance(item, (NsyncError, aiohttp.ClientError, asyncio.TimeoutError)):
            raise item
        if isinstance(item, Exception):
            raise TransportError(f"the answer of {response.url} broke off in what is no HTTP ({type(item).__name__}); try again") from item
        return item

    reading = asyncio.ensure_future(read())
    try:
        yield next_frames
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _some(arriving: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """The next frames, up to a piece, and whether these are all that have arrived."""
    frames: list[bytes] = []
    size = 0
    for frame in arriving:
        frames.append(frame)
        size += len(frame)
        if size >= PIECE_BYTES_MIN:
            return frames, False
    return frames, True
