"""TLS between peers: whose key may answer stands in the charter.

    the charter has for a peer    its server is believed when
    https://, with pins           its key has one of the pins; names, dates and authorities are not looked at
    https://, no pins             its certificate holds for the host name, by the system's authorities: a web proxy's
    http://                       always; so it must be a loopback address, and `[nsync] allow_plain_http` set

A pin is the SHA-256 of a certificate's SubjectPublicKeyInfo: the key counts, so a certificate can be renewed without an
amendment, and a second pin announces the next key before it is used. It is compared within the handshake, when the server
has proved that it holds the key: nothing of a request leaves before. Who asks is told by the request's own signature
(transport.requests), so no certificate of the caller is looked at.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, Optional, Union
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nsync.authority.charter import Charter, Instance
from nsync.errors import ConfigError

CERTIFICATE_DAYS = 36_500
"""Nobody who compares the pin looks at the dates: a key ends by an amendment."""


def client_context(peer: Instance) -> Union[ssl.SSLContext, bool]:
    """For calls to `peer`: what aiohttp takes as `ssl`. True for what needs none."""
    if not peer.url.startswith("https://"):
        return True
    if not peer.tls:
        return _modern(ssl.create_default_context())
    context = _modern(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake of `_pinned` verifies
    context.sslobject_class = _pinned(frozenset(peer.tls))
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a node that ends TLS itself. Raises ConfigError."""
    context = _modern(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    try:
        mode = key.stat().st_mode
        context.load_cert_chain(certificate, key, password=lambda: b"")  # asks nobody at a terminal
    except ssl.SSLError as error:
        raise ConfigError(
            f"[nsync] tls_cert = {certificate}, tls_key = {key}: not a certificate and its key without a passphrase, in PEM "
            f"({error.reason or error}); make them with 'nsync charter certificate'"
        ) from error
    except OSError as error:
        raise ConfigError(f"[nsync] tls_cert = {certificate}, tls_key = {key}: {error.strerror}: {error.filename}") from error
    if mode & 0o077:
        raise ConfigError(f"[nsync] tls_key = {key} can be read by other users (mode {mode & 0o777:o}); run 'chmod 600 {key}'")
    return context


def pin(certificate: Path) -> bytes:
    """The pin of the first certificate in a PEM file. Raises ConfigError."""
    try:
        return _pin(x509.load_pem_x509_certificate(certificate.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{certificate} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{certificate} holds no certificate in PEM: {error}") from error


class NewCertificate(NamedTuple):
    """A key that nobody had before, with a certificate for it, in PEM."""

    key: bytes
    certificate: bytes
    pin: bytes

    def save(self, directory: Path) -> None:
        """Write `tls.key` (mode 600) and `tls.pem`. Raises ConfigError."""
        _write(directory / "tls.key", self.key, 0o600)
        _write(directory / "tls.pem", self.certificate, 0o644)


def new_certificate(now: datetime.datetime) -> NewCertificate:
    """Make a key and a certificate, and write nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nsync")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return NewCertificate(private, certificate.public_bytes(Encoding.PEM), _pin(certificate))


def make_certificate(directory: Path, now: datetime.datetime) -> bytes:
    """Make a key and a certificate in `directory`; returns the pin. Raises ConfigError."""
    made = new_certificate(now)
    made.save(directory)
    return made.pin


def check_urls(charter: Charter, allow_plain_http: bool) -> None:
    """Raises ConfigError when a peer would be called without TLS, unless on this host and by configuration."""
    for instance in charter.instances:
        url = urlsplit(instance.url)
        if url.scheme == "https" or instance.retired is not None:
            continue
        if not _is_loopback(url.hostname):
            raise ConfigError(
                f"the charter has {instance.url} for {instance.name}: without TLS anybody on the way can read along; "
                "agree on an amendment with an https:// URL"
            )
        if not allow_plain_http:
            raise ConfigError(
                f"the charter has {instance.url} for {instance.name}, without TLS; "
                "if all nodes are to run on this host, set [nsync] allow_plain_http = true"
            )


def own_context(me: Instance, certificate: Optional[Path], key: Optional[Path]) -> Optional[ssl.SSLContext]:
    """What this instance listens with; None without TLS of its own: plain, or behind a proxy. Raises ConfigError."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("[nsync] tls_cert and tls_key: set both, or none where a proxy ends TLS")
    if not me.url.startswith("https://"):
        raise ConfigError(f"[nsync] tls_cert is set, but the charter has {me.url} for {me.name}: peers would call without TLS")
    if me.tls and pin(certificate) not in me.tls:
        raise ConfigError(
            f"[nsync] tls_cert = {certificate} has the pin {pin(certificate).hex()}, which the charter does not have for {me.name}: "
            f"no peer would believe it; the charter has {', '.join(known.hex() for known in me.tls)}"
        )
    return server_context(certificate, key)


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _pinned(pins: frozenset[bytes]) -> type[ssl.SSLObject]:
    """An ssl.SSLObject whose handshake fails unless the server's key has one of `pins`."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if not is_pinned(self.getpeercert(binary_form=True), pins):
                raise ssl.SSLCertVerificationError(1, "the server's key has none of the pins that the charter has for it")

    return Pinned


def is_pinned(certificate: Optional[bytes], pins: Collection[bytes]) -> bool:
    """Whether the key in the certificate (DER), for which the handshake was made, has one of `pins`."""
    try:
        return certificate is not None and _pin(x509.load_der_x509_certificate(certificate)) in pins
    except (ValueError, UnsupportedAlgorithm):  # what OpenSSL takes and cryptography does not
        return False


def _pin(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def _is_loopback(host: Optional[str]) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file; one that exists is never overwritten."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; a key is never overwritten") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
