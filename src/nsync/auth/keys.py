"""Ed25519 keys: the only door to PyNaCl.

A key signs bytes under a *purpose* ("segment", "charter", "request"), so that a signature made for one can never pass
for another. Key files hold 64 hexadecimal digits and are readable by their owner only.
"""

from __future__ import annotations

import os
from pathlib import Path

from nacl import signing
from nacl.exceptions import BadSignatureError

from nsync.errors import ConfigError

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """The private key of an instance or a root."""

    def __init__(self, seed: bytes) -> None:
        self._key = signing.SigningKey(seed)
        self.public: bytes = bytes(self._key.verify_key)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new random key."""
        return cls(bytes(signing.SigningKey.generate()))

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key in the file at `path`. Raises ConfigError when it is missing, malformed, or open to others."""
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="ascii").strip()
            seed = bytes.fromhex(text)
        except FileNotFoundError as error:
            raise ConfigError(f"key file {path} does not exist; make one with 'nsync charter keygen {path}'") from error
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"key file {path} does not hold 64 hexadecimal digits") from error
        if len(seed) != PUBLIC_BYTES:
            raise ConfigError(f"key file {path} holds {len(seed)} bytes instead of {PUBLIC_BYTES}")
        if mode & 0o077:
            raise ConfigError(f"key file {path} can be read by other users (mode {mode & 0o777:o}); run 'chmod 600 {path}'")
        return cls(seed)

    def save(self, path: Path) -> None:
        """Write the key to a new file at `path`, mode 600. An existing file is never overwritten (ConfigError)."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ConfigError(f"key file {path} exists already; a key is never overwritten") from error
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(bytes(self._key).hex() + "\n")

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The 64-byte signature of `message` under `purpose`."""
        return bytes(self._key.sign(_tagged(purpose, message)).signature)


def verify(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` was made over `message` under `purpose` by the owner of `public`."""
    try:
        signing.VerifyKey(public).verify(_tagged(purpose, message), signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def _tagged(purpose: str, message: bytes) -> bytes:
    return b"nsync/" + purpose.encode("ascii") + b"\x00" + message
