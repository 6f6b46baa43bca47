"""Signing keys: readable by their owner only, never overwritten, and one purpose cannot pass for another."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nsync.auth.keys import SigningKey, verify
from nsync.errors import ConfigError

SEED = bytes(range(32))


def test_a_saved_key_is_its_owners_only_and_comes_back(tmp_path: Path) -> None:
    path, key = tmp_path / "key", SigningKey(SEED)
    umask = os.umask(0)
    try:
        key.save(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == SEED.hex() + "\n"
    assert SigningKey.load(path).public == key.public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    SigningKey(SEED).save(path)
    for taken in (path, tmp_path):
        with pytest.raises(ConfigError, match="exists already; a key is never overwritten"):
            SigningKey.generate().save(taken)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        SigningKey.generate().save(tmp_path / "link")
    assert SigningKey.load(path).public == SigningKey(SEED).public
    assert not (tmp_path / "nowhere").exists()


def test_a_key_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        SigningKey.generate().save(tmp_path / "no" / "directory" / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey(SEED).save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}.; run 'chmod 600 "):
        SigningKey.load(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds 0 bytes"),
        (b"00" * 31, "holds 31 bytes"),
        (b"00" * 33, "holds 33 bytes"),
        (b"zz" * 32, "does not hold 64"),
        (b"\xff" * 64, "does not hold 64"),
    ],
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=text) as caught:
        SigningKey.load(path)
    assert "zz" not in str(caught.value), "what stands in a key file is never told"


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nsync charter keygen"):
        SigningKey.load(tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        SigningKey.load(tmp_path)


def test_purposes_do_not_mix() -> None:
    key, purposes = SigningKey(SEED), ("segment", "charter", "request")
    for made in purposes:
        signature = key.sign(made, b"message")
        assert [verify(key.public, asked, b"message", signature) for asked in purposes] == [made == asked for asked in purposes]
    assert not verify(key.public, "a", b"b\x00c", key.sign("a\x00b", b"c")) or "a\x00b" not in purposes


@pytest.mark.parametrize(
    ("public", "message", "signature"),
    [
        (b"", b"m", bytes(64)),
        (bytes(31), b"m", bytes(64)),
        (bytes(33), b"m", bytes(64)),
        (bytes(32), b"m", bytes(64)),
        (None, b"m", b""),
        (None, b"m", bytes(64)),
        (None, b"x", None),
    ],
)
def test_whatever_is_no_signature_is_false_and_no_error(public: bytes, message: bytes, signature: bytes) -> None:
    key = SigningKey(SEED)
    assert not verify(
        key.public if public is None else public, "segment", message, key.sign("segment", b"m") if signature is None else signature
    )


def test_keys_are_random() -> None:
    assert len({SigningKey.generate().public for _ in range(8)}) == 8
    assert SEED.hex() not in repr(SigningKey(SEED))
