"""Over TLS a peer is who has the key whose pin the charter has, whatever its certificate says; and nobody else gets a request."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

import pytest

from nsync.authority.charter import Charter, Instance
from nsync.errors import ConfigError, TransportError
from nsync.transport import tls
from nsync.transport.client import PeerClient, open_session
from nsync.transport.listener import Listener
from nsync.transport.server import Server
from tests.integration.test_transport import MemoryLog, hung_up, members, on_a_loop

NOW = datetime.now(timezone.utc)


class Identity:
    """A TLS key with its certificate, in a directory of its own."""

    def __init__(self, directory: Path, now: datetime = NOW) -> None:
        directory.mkdir()
        self.certificate, self.key = directory / "tls.pem", directory / "tls.key"
        self.pin = tls.make_certificate(directory, now)

    @property
    def context(self) -> ssl.SSLContext:
        return tls.server_context(self.certificate, self.key)


@asynccontextmanager
async def calling(listening: Optional[ssl.SSLContext], *pins: bytes) -> AsyncIterator[tuple[PeerClient, MemoryLog, Instance]]:
    """a's client for b, which listens with `listening`, while the charter has `pins` for it; and b's log."""
    plain, keys = members("ab")
    me, peer = (replace(i, url=i.url.replace("http:", "https:"), tls=pins) for i in plain.instances)
    charter = Charter("test", 1, plain.federation, (me, peer))
    log = MemoryLog()
    listener = Listener(Server(charter, peer, log, None, lambda: None).app(), header_s_max=1.0)
    await listener.start("127.0.0.1", int(peer.url.rsplit(":", 1)[1]), listening)
    try:
        async with open_session() as http:
            yield PeerClient(http, charter, me, peer, keys[0]), log, peer
    finally:
        await listener.stop()


@on_a_loop
async def test_a_peer_with_a_pinned_key_is_asked(tmp_path: Path) -> None:
    """One of several pins: the next key can be announced before it is used."""
    mine, next_ = Identity(tmp_path / "mine"), Identity(tmp_path / "next")
    for used in (mine, next_):
        async with calling(used.context, mine.pin, next_.pin) as (client, log, _):
            assert (await client.hello(bytes(16))).heads == [] and log.asked == 1


@on_a_loop
async def test_dates_and_names_do_not_count(tmp_path: Path) -> None:
    early = Identity(tmp_path / "early", NOW + timedelta(days=40))
    async with calling(early.context, early.pin) as (client, _, _):
        assert (await client.hello(bytes(16))).heads == []


@on_a_loop
async def test_a_renewed_certificate_of_the_same_key_needs_no_amendment(tmp_path: Path) -> None:
    mine = Identity(tmp_path / "mine")
    renewed = ["openssl", "req", "-x509", "-key", str(mine.key), "-subj", "/CN=another.name", "-days", "1", "-out", str(mine.certificate)]
    before = mine.certificate.read_bytes()
    await asyncio.to_thread(subprocess.run, renewed, check=True)
    assert mine.certificate.read_bytes() != before
    async with calling(mine.context, mine.pin) as (client, _, _):
        assert (await client.hello(bytes(16))).heads == []


@on_a_loop
async def test_another_key_gets_no_request(tmp_path: Path) -> None:
    """Whoever is in between has a key and a certificate of its own, however well they look."""
    mine, other = Identity(tmp_path / "mine"), Identity(tmp_path / "other")
    async with calling(other.context, mine.pin) as (client, log, peer):
        reason = ""
        try:
            await client.hello(bytes(16))
        except TransportError as error:
            reason = str(error)
        assert peer.url in reason and "none of the pins that the charter has for it" in reason and not log.asked


@on_a_loop
async def test_without_a_pin_the_systems_authorities_decide(tmp_path: Path) -> None:
    """So a self-made certificate is not believed."""
    async with calling(Identity(tmp_path / "mine").context) as (client, log, _):
        with pytest.raises(TransportError, match="self-signed certificate"):
            await client.hello(bytes(16))
        assert not log.asked


@on_a_loop
async def test_a_peer_that_speaks_no_tls_gets_no_request(tmp_path: Path) -> None:
    async with calling(None, Identity(tmp_path / "mine").pin) as (client, log, _):
        with pytest.raises(TransportError, match="could not be reached"):
            await client.hello(bytes(16))
        assert not log.asked


@on_a_loop
async def test_old_tls_is_refused_by_both_ends(tmp_path: Path) -> None:
    mine = Identity(tmp_path / "mine")
    old = mine.context
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with calling(old, mine.pin) as (client, _, _):
        with pytest.raises(TransportError, match="could not be reached"):
            await client.hello(bytes(16))
    async with calling(mine.context, mine.pin) as (_, _, peer):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", int(peer.url.rsplit(":", 1)[1]), ssl=context)


@on_a_loop
async def test_a_handshake_that_is_not_finished_is_hung_up_on(tmp_path: Path) -> None:
    mine = Identity(tmp_path / "mine")
    async with calling(mine.context, mine.pin) as (client, _, peer):
        for start in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x00\x01\x00"):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(peer.url.rsplit(":", 1)[1]))
            writer.write(start)
            await hung_up(reader, writer)
        assert (await client.hello(bytes(16))).heads == []


@on_a_loop
async def test_a_log_passes_over_tls(tmp_path: Path) -> None:
    """Larger than the buffers in between, both ways."""
    mine = Identity(tmp_path / "mine")
    async with calling(mine.context, mine.pin) as (client, log, peer):
        log.append(peer.author, 12, size=1 << 20)
        frames = [segment.frame for segment in log.segments[peer.author]]
        came: list[bytes] = []

        async def take(batch: object) -> bool:
            came.extend(batch)  # type: ignore[call-overload]
            return True

        await client.pull({peer.author: []}, take)
        assert came == frames
        log.segments.clear()
        assert (await client.push(frames[:4])).stored == 4


def test_a_pin_is_what_openssl_computes(tmp_path: Path) -> None:
    made = Identity(tmp_path / "made")
    public = subprocess.run(["openssl", "x509", "-in", str(made.certificate), "-pubkey", "-noout"], capture_output=True, check=True)
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=public.stdout, capture_output=True, check=True)
    assert hashlib.sha256(der.stdout).digest() == made.pin == tls.pin(made.certificate)
    assert made.key.stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    made = Identity(tmp_path / "made")
    before = made.key.read_bytes()
    with pytest.raises(ConfigError, match=r"tls\.key cannot be written: File exists; a key is never overwritten"):
        tls.make_certificate(tmp_path / "made", NOW)
    assert made.key.read_bytes() == before


def test_what_no_certificate_is_has_no_pin(tmp_path: Path) -> None:
    made = Identity(tmp_path / "made")
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    assert tls.is_pinned(der, [made.pin])
    for certificate in (None, b"", der[:-1], der + b"\0", b"\x30\x82" * 1000):
        assert not tls.is_pinned(certificate, [made.pin])
    with pytest.raises(ConfigError, match="holds no certificate in PEM"):
        tls.pin(made.key)
