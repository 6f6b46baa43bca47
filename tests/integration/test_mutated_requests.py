"""However a request is altered, on whatever route: no 5xx but "busy", no traceback, no descriptor left, and the next one is answered.

Half of them are altered before they are signed, so that they come to the handlers; the others as bytes on the wire.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nsync.authority.charter import Place
from nsync.authority.effective import Authority
from nsync.log.lease import sign_head
from nsync.log.notices import Stand, head_notice
from nsync.store.repair import Repairs
from nsync.transport import budgets, notices, repair, wire
from nsync.transport.budgets import Budget
from nsync.transport.notices import Word
from nsync.transport.repair import Places
from nsync.transport.roster import Roster
from nsync.transport.times import wall_ms
from tests.integration.test_forks_between_peers import History, StoreLog
from tests.integration.test_transport import Node, head, members
from tests.support.notary import Notaries

SEED = 20_261_124
ROUNDS = int(os.environ.get("NSYNC_MUTATIONS", "30000"))
CALLERS = "abcdefgh"
"""Each sends over one connection at a time, from an address of its own."""

PER_CONNECTION = 25
ANSWER_S_MAX = 20.0
STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
GENEROUS = Budget(1e9, 1e9)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Mutator:
    """Requests of a member, and what a hostile one makes of them; the same ones for the same seed."""

    def __init__(self, seed: int, caller: Node[Any], callee: Node[Any], bodies: dict[str, list[bytes]]) -> None:
        self.rng = random.Random(seed)
        self.caller, self.callee, self.bodies = caller, callee, bodies

    def requests(self) -> Iterator[bytes]:
        """Altered requests without end, each as the bytes on a wire."""
        verbs = sorted(self.bodies)
        while True:
            verb = self.rng.choice(verbs)
            body = self.rng.choice(self.bodies[verb])
            if self.rng.random() < 0.5:
                body = self._bytes(body)
                yield head(self.caller, self.callee, verb, body) + body
            else:
                yield self._wire(head(self.caller, self.callee, verb, body) + body)

    def _bytes(self, data: bytes) -> bytes:
        """One to three of: a byte changed, a piece cut out, repeated, or put in from anywhere."""
        for _ in range(self.rng.randint(1, 3)):
            at, length = self.rng.randrange(len(data) + 1), self.rng.choice((1, 1, 2, 5, 40))
            piece = self.rng.choice(
                (b"", self.rng.randbytes(length), data[at : at + length] * 2, b"\xdf\xff\xff\xff\xff", b"\xc1", b"\x9f" * length)
            )
            data = data[:at] + piece + data[at + length :]
        return data

    def _wire(self, data: bytes) -> bytes:
        """The head altered in a way that HTTP knows, or any bytes in any way."""
        change = self.rng.choice(CHANGES)
        return self._bytes(data) if change is None else data.replace(*change, 1)


CHANGES = (
    *(None,) * 8,
    (b"POST", b"GET"),
    (b"POST", b"PUT"),
    (b"POST", b"HEAD"),
    (b"POST", b"OPTIONS"),
    (b"POST", b"CONNECT"),
    (b"POST", b"P\x00ST"),
    (b"/nsync/v1/", b"/"),
    (b"/nsync/v1/", b"/nsync/v1/../../"),
    (b"/nsync/v1/", b"/nsync/v2/"),
    (b"/nsync/v1/", b"//nsync//v1//"),
    (b"/nsync/v1/", b"http://elsewhere/nsync/v1/"),
    (b"/nsync/v1/hello", b"/ping"),
    (b"/nsync/v1/push", b"/health/ready"),
    (b"/nsync/v1/pull", b"/metrics"),
    (b" HTTP/1.1", b"?" + b"x" * 3000 + b" HTTP/1.1"),
    (b"HTTP/1.1", b"HTTP/1.0"),
    (b"HTTP/1.1", b"HTTP/2.0"),
    (b"HTTP/1.1", b"HTTP/9.9"),
    (b"Host: b\r\n", b""),
    (b"Host: b", b"Host: b\r\nTransfer-Encoding: chunked"),
    (b"Host: b", b"Host: b\r\nTransfer-Encoding: gzip, chunked"),
    (b"Host: b", b"Host: b\r\nContent-Encoding: zstd"),
    (b"Host: b", b"Host: b\r\nContent-Length: 5"),
    (b"Host: b", b"Host: b\r\nExpect: 100-continue"),
    (b"Host: b", b"Host: b\r\nUpgrade: websocket\r\nConnection: upgrade"),
    (b"Host: b", b"Host: b\r\nConnection: close"),
    (b"Host: b", b"Host: b\r\nX: " + b"y" * 5000),
    (b"Host: b", b"Host: b\r\n" + b"\r\n".join(b"H%d: x" % n for n in range(100))),
    (b"Host: b", b"Host: b\r\n folded: x"),
    (b"Host: b", b"Host: b\r\n\x00: x"),
    (b"Authorization: nsync", b"Authorization: Bearer"),
    (b"Authorization:", b"Authorization: x\r\nAuthorization:"),
    (b"audience=", b"audience=0"),
    (b"created=", b"created=9"),
    (b"created=", b"created=-"),
    (b"nonce=", b"nonce=\xff"),
    (b"Content-Length: ", b"Content-Length: 9"),
    (b"Content-Length: ", b"Content-Length: -"),
    (b"Content-Length: ", b"Content-Length: 99999999999999999999"),
    (b"Content-Length: ", b"X-Length: "),
    (b"\r\n\r\n", b"\n\n"),
    (b"\r\n\r\n", b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
)


class Sender:
    """One hostile member: sends altered requests, and notes what comes back."""

    def __init__(self, port: int, address: str, mutator: Mutator) -> None:
        self.port, self.address = port, address
        self.requests = mutator.requests()
        self.answers: Counter[int] = Counter()
        self.failures: list[tuple[bytes, bytes]] = []

    async def send(self, count: int) -> None:
        """One connection after the other, each for as long as the server keeps it."""
        while sum(self.answers.values()) < count:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(self.address, 0))
            try:
                for request in itertools.islice(self.requests, PER_CONNECTION):
                    writer.write(request)
                    answer = await asyncio.wait_for(self._answer(reader, writer), ANSWER_S_MAX)
                    self._note(request, answer)
                    if not answer or b"connection: close" in answer.lower() or not _is_whole(request):
                        break
            except ConnectionError:
                self.answers[0] += 1
            finally:
                writer.transport.abort()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """An answer, or nothing when the server hung up. A server that still waits for more is told that this was all."""
        try:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.05)
        except asyncio.TimeoutError:
            writer.write_eof()
            with suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(reader.read(1 << 16), 0.05) + b"connection: close"
            return b""
        except asyncio.IncompleteReadError as error:
            return error.partial
        length = re.search(rb"content-length: ([0-9]+)", answer.lower())
        if length is None:
            return answer + b"connection: close"  # a stream: this connection has served
        with suppress(asyncio.IncompleteReadError):  # the answer to a HEAD
            answer += await reader.readexactly(int(length[1]))
        return answer

    def _note(self, request: bytes, answer: bytes) -> None:
        found = STATUS.match(answer)
        status = int(found[1]) if found else 0
        self.answers[status] += 1
        if status >= 500 and not (status == 503 and b"busy" in answer):
            self.failures.append((request, answer))


def _is_whole(request: bytes) -> bool:
    """Whether the next request would begin where this one ends; else the connection is not used again."""
    start, found, body = request.partition(b"\r\n\r\n")
    length = re.findall(rb"(?m)^Content-Length: ([0-9]{1,9})\r?$", start)
    return bool(found) and len(length) == 1 and int(length[0]) == len(body) and b"hunked" not in start


@pytest.mark.timeout(600)
def test_no_altered_request_is_answered_with_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all budgets there is enough: what is looked for is behind them."""
    monkeypatch.setattr(budgets, "PEER_BUDGETS", dict.fromkeys(budgets.PEER_BUDGETS, GENEROUS))
    caplog.set_level(logging.WARNING)
    asyncio.run(send_altered(tmp_path, caplog))


async def send_altered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    charter, keys = members(CALLERS + "z")
    log = StoreLog(tmp_path / "z.db", charter, charter.instances[-1].author)
    *callers, callee = (Node(charter, me, key, log, 3600) for me, key in zip(charter.instances, keys))
    history = History(charter, callers[0].me.author, keys[0]).write(40)
    ground = Notaries(Authority(charter), "z", keys[-1].sign, wall_ms())
    ground.engine = log.engine
    callee.notices, callee.repairs = ground.notary, Repairs(ground, wall_ms)
    signed = sign_head(charter.federation, callers[0].me.author, Place(1, bytes(16)), wall_ms(), keys[0].sign)
    await callee.start(gossip=False, header_s_max=0.5, source_rate=GENEROUS)
    bodies = {
        "hello": [wire.encode_hello(bytes(16), Roster(charter).digest)],
        "tell": [wire.encode_tell(callee.log.heads())],
        "pull": [wire.encode_have({callers[0].me.author: []}), wire.encode_have({})],
        "push": [wire.encode_frames(history.frames[n : n + 3]) for n in range(0, 40, 3)],
        "notices": [notices.encode(Word(Stand(0, ()), ())), notices.encode(Word(Stand(1, (bytes(16),)), (head_notice(signed),)))],
        "blocks": [repair.encode_first(1, 0)],
        "bitmaps": [repair.encode_places(Places(1, (0, 1, 2)))],
        "ops": [repair.encode_places(Places(1, (0, 1, 4095)))],
    }
    assert set(bodies) == {verb.name for verb in callee.server._verbs}, "over every route"
    senders = [Sender(callee.port, f"127.0.1.{n + 1}", Mutator(SEED + n, caller, callee, bodies)) for n, caller in enumerate(callers)]
    before = open_descriptors()
    try:
        await asyncio.gather(*(sender.send(ROUNDS // len(senders) + 1) for sender in senders))
        answers = sum((sender.answers for sender in senders), Counter())
        failures = [failure for sender in senders for failure in sender.failures]
        assert not failures, f"seed {SEED}: {len(failures)} of {answers}; the first: {failures[0]}"
        assert sum(answers.values()) >= ROUNDS
        assert {200, 400, 401, 404, 405, 413, 415} <= set(answers), f"the requests do not come far enough: {answers}"
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info], "no traceback"
        for _ in range(100):
            if open_descriptors() <= before:
                break
            await asyncio.sleep(0.1)
        assert open_descriptors() <= before
        reader, writer = await asyncio.open_connection("127.0.0.1", callee.port)
        writer.write(head(callers[0], callee, "hello", bodies["hello"][0]) + bodies["hello"][0])
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()
    finally:
        await callee.stop()
        for node in (*callers, callee):
            node.executor.shutdown()
        log.close()
