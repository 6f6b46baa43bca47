"""Signed requests: who asks, whom, what, and when, in one Authorization header.

    Authorization: nsync author=…, audience=…, created=…, nonce=…, body=…, signature=…

The signature (purpose "request") is over the federation, the five fields, the method and the path, so a request cannot
be altered, sent to another instance, or used in another federation. The body's digest stands in the header: a server
knows that a member asks before it reads a byte of the body, and then only has to compare.

A request counts for WINDOW_MS on either side of the server's clock, and once: its nonce is kept for as long as the
request could be sent again. The nonces are lost with the process; what can be replayed then within the window only
repeats segments, which are stored once.

Pure: the time and the nonce are passed in. Every failure is NotAuthorised with a reason for the local log only.
Answers are not signed: the caller believes nothing in them that a log's author has not signed.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from typing import NamedTuple, Protocol

import msgpack

from nsync.auth.keys import SIGNATURE_BYTES, verify
from nsync.authority.charter import ID_BYTES, AuthorId, Charter, FederationId, Instance
from nsync.errors import NotAuthorised

WINDOW_MS = 60_000
"""How far the clocks of two peers may lie apart, the way of the request included."""

NONCE_BYTES = 16
NONCES_PER_PEER_MAX = 10_000
"""Requests of one peer within 2 × WINDOW_MS, about 80 a second for two minutes; beyond it the peer is refused."""

HEADER_LENGTH_MAX = 512


class Signer(Protocol):
    """The instance's key: `nsync.auth.keys.SigningKey`, or whatever holds it (an agent, an HSM)."""

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The 64-byte signature of `message` under `purpose`."""


class Caller(NamedTuple):
    """Who made a request, and what its body must be."""

    instance: Instance
    body_digest: bytes


class _Fields(NamedTuple):
    author: bytes
    audience: bytes
    created_ms: int
    nonce: bytes
    body_digest: bytes

    def message(self, federation: FederationId, method: str, path: str) -> bytes:
        packed: bytes = msgpack.packb([federation, *self, method, path])
        return packed


_HEADER = re.compile(
    rf"nsync author=([0-9a-f]{{{2 * ID_BYTES}}}), audience=([0-9a-f]{{{2 * ID_BYTES}}}), created=(0|[1-9][0-9]{{0,15}}), "
    rf"nonce=([0-9a-f]{{{2 * NONCE_BYTES}}}), body=([0-9a-f]{{{2 * ID_BYTES}}}), signature=([0-9a-f]{{{2 * SIGNATURE_BYTES}}})"
)


def body_digest(body: bytes) -> bytes:
    """What the header says about the body."""
    return hashlib.blake2b(body, digest_size=ID_BYTES, person=b"nsync body").digest()


def authorization(
    signer: Signer,
    federation: FederationId,
    author: AuthorId,
    audience: AuthorId,
    method: str,
    path: str,
    body: bytes,
    now_ms: int,
    nonce: bytes,
) -> str:
    """The value of the Authorization header for one request of `author` to `audience`."""
    fields = _Fields(author, audience, now_ms, nonce, body_digest(body))
    signature = signer.sign("request", fields.message(federation, method, path))
    return (
        f"nsync author={author.hex()}, audience={audience.hex()}, created={now_ms}, "
        f"nonce={nonce.hex()}, body={fields.body_digest.hex()}, signature={signature.hex()}"
    )


class Verifier:
    """Knows which requests to this instance were seen already."""

    def __init__(self, charter: Charter, me: AuthorId) -> None:
        self._charter = charter
        self._me = me
        self._nonces: dict[str, OrderedDict[bytes, int]] = {i.name: OrderedDict() for i in charter.instances}

    def check(self, header: str, method: str, path: str, now_ms: int) -> Caller:
        """The caller of a request whose body is still to be compared. Raises NotAuthorised."""
        fields, signature = _parse(header)
        instance = self._charter.by_author(fields.author)
        if instance is None:
            raise NotAuthorised(f"author {fields.author.hex()} is not in the charter")
        if instance.author != fields.author or instance.retired is not None:
            raise NotAuthorised(f"{instance.name} asks as author {fields.author.hex()}, whose log has ended by the charter")
        if fields.audience != self._me:
            raise NotAuthorised(f"{instance.name} asks author {fields.audience.hex()}, this is {self._me.hex()}")
        if abs(fields.created_ms - now_ms) > WINDOW_MS:
            raise NotAuthorised(f"{instance.name} signed the request {now_ms - fields.created_ms} ms ago; compare the clocks")
        if not verify(instance.key, "request", fields.message(self._charter.federation, method, path), signature):
            raise NotAuthorised(f"{instance.name}: the signature does not fit; compare its key and the federation id")
        self._once(instance.name, fields.nonce, now_ms)
        return Caller(instance, fields.body_digest)

    def _once(self, name: str, nonce: bytes, now_ms: int) -> None:
        """Remember `nonce` until its request is out of the window, wherever in the window it was signed."""
        seen = self._nonces[name]
        while seen and now_ms - next(iter(seen.values())) > 2 * WINDOW_MS:
            seen.popitem(last=False)
        if nonce in seen:
            raise NotAuthorised(f"{name} sent the request with nonce {nonce.hex()} twice")
        if len(seen) >= NONCES_PER_PEER_MAX:
            raise NotAuthorised(f"{name} made more than {NONCES_PER_PEER_MAX} requests within {2 * WINDOW_MS} ms")
        seen[nonce] = now_ms


def _parse(header: str) -> tuple[_Fields, bytes]:
    found = _HEADER.fullmatch(header) if len(header) <= HEADER_LENGTH_MAX else None
    if found is None:
        raise NotAuthorised("no nsync Authorization header")
    author, audience, created, nonce, body, signature = found.groups()
    fields = _Fields(bytes.fromhex(author), bytes.fromhex(audience), int(created), bytes.fromhex(nonce), bytes.fromhex(body))
    return fields, bytes.fromhex(signature)
