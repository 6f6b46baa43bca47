"""What goes over the wire between two peers, how much of it, and for how long.

    hello     → [version_min, version_max, digest]      21 bytes
              ← [version, nil]                          in sync, 3 bytes
              ← [version, [[author, seq, hash], …]]     not in sync: at most 46 bytes per head
    pull      → [[author, [[seq, hash], …]], …]         the logs asked for, and places in them that the caller has
              ← frames
    push      → frames
              ← [stored, [text, …]]                     the receipt

Messages are canonical msgpack: what decodes encodes to the same bytes, and every length is bounded before it is
allocated. Frames are one zstd stream of (length: 4 bytes big-endian, frame) pairs; the end of the stream is the end of
the list, so a list cut short is told from a whole one.

Pure: bytes in, values out. Whatever breaks a rule or a limit raises ProtocolError, and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import msgpack
import zstandard

from nsync.authority.charter import ID_BYTES, Place
from nsync.errors import ProtocolError
from nsync.log.segment import FRAME_BYTES_MAX, SEQ_MAX, SIGNATURE_BYTES
from nsync.log.stored import Head, Receipt

VERSION = 2
PATH = "/nsync/v1/"
"""How requests are made and signed; which messages are spoken is told by the hello."""

FRAME_BYTES_MIN = SIGNATURE_BYTES
"""Every segment bears a signature; so a body of N bytes holds at most N/64 frames."""

BATCH_BYTES_MAX = 4 << 20
"""Frames given to the log at once, and sent in one push: one commit, some tens of milliseconds."""

BATCH_FRAMES_MAX = 1024
"""The same, for small frames: about 0.1 s of signature checks."""

BODY_BYTES_MAX = 8 << 20
"""The body of a push, as sent and inflated: one batch with its length prefixes, twice over."""

PULL_BYTES_MAX = 64 << 20
"""One answer to a pull, inflated. Who lacks more asks again, so that no exchange lasts for ever."""

BODY_S_MAX = 60.0
"""To send a body: 8 MiB at 140 kB/s."""

PULL_S_MAX = 300.0
"""To send the answer to a pull: 64 MiB, compressed about fourfold, at 60 kB/s. Who is slower keeps what came and resumes."""

HEADS_MAX = 4096
"""Heads or authors in one message: a thousand members with some instances and incarnations each."""

HELLO_BYTES_MAX = 64
HEADS_BYTES_MAX = HEADS_MAX * 48
"""A head is 46 bytes at most."""

PLACES_MAX = 256
"""Places of one author in a pull: each branch has one per doubling of its length, 30 for a thousand million segments."""
LIST_BYTES_MAX = 3
AUTHOR_BYTES_MAX = 1 + 18 + LIST_BYTES_MAX
PLACE_BYTES_MAX = 1 + 9 + 18
HAVE_BYTES_MAX = 1 << 18
"""A pull: 9000 places, or 4096 authors of whom the caller has nothing. Who wants more asks several times."""

TEXT_BYTES_MAX = 512
TEXTS_MAX = 32
"""Reasons in a receipt: enough to see what is wrong."""
RECEIPT_BYTES_MAX = TEXTS_MAX * (TEXT_BYTES_MAX + 3) + 16

WINDOW_BYTES_LOG = 20
"""zstd looks back 1 MiB: about one segment, and all that a receiver must keep."""

_SLICE_BYTES = 64
"""Compressed bytes inflated at once. A zstd block has at least 4 bytes and inflates to at most 128 KiB, so a slice
inflates to 2 MiB at most, whoever made it. (Measured: 0.1 s per 8 MiB more than without slices.)"""

_LENGTH = struct.Struct(">I")


class Hello(NamedTuple):
    """The question: which versions I speak, and the digest of my heads."""

    version_min: int
    version_max: int
    digest: bytes


class HelloReply(NamedTuple):
    """The answer: the version to use, and my heads unless they are the same as yours."""

    version: int
    heads: Optional[list[Head]]


def encode_hello(digest: bytes) -> bytes:
    return _pack([VERSION, VERSION, digest])


def decode_hello(data: bytes) -> Hello:
    fields = _fields(_unpack(data, "hello", HELLO_BYTES_MAX), 3, "hello")
    low, high = _number(fields[0], "version"), _number(fields[1], "version")
    if not low <= VERSION <= high:
        raise ProtocolError(f"hello: peer speaks protocol versions {low} to {high}, this nsync speaks {VERSION}; upgrade the older one")
    return Hello(low, high, _id(fields[2], "digest"))


def encode_hello_reply(heads: Optional[Iterable[Head]]) -> bytes:
    return _pack([VERSION, None if heads is None else sorted(heads)])


def decode_hello_reply(data: bytes) -> HelloReply:
    version, heads = _fields(_unpack(data, "hello reply", HEADS_BYTES_MAX), 2, "hello reply")
    if _number(version, "version") != VERSION:
        raise ProtocolError(f"hello reply: peer chose protocol version {version}, this nsync speaks {VERSION}; upgrade the older one")
    return HelloReply(VERSION, None if heads is None else _ascending([_head(h) for h in _list(heads, HEADS_MAX, "heads")], "heads"))


def encode_have(have: Mapping[bytes, Sequence[Place]]) -> bytes:
    return _pack([[author, sorted(places)] for author, places in sorted(have.items())])


def decode_have(data: bytes) -> dict[bytes, list[Place]]:
    entries = [_fields(e, 2, "have") for e in _list(_unpack(data, "have", HAVE_BYTES_MAX), HEADS_MAX, "have")]
    authors = _ascending([_id(author, "author") for author, _ in entries], "have")
    places = ([_place(place) for place in _list(found, PLACES_MAX, "places")] for _, found in entries)
    return {author: _ascending(found, "places")[::-1] for author, found in zip(authors, places)}


def encode_receipt(receipt: Receipt) -> bytes:
    texts = [clean(text) for text in receipt.rejected[:TEXTS_MAX]]
    if len(receipt.rejected) > TEXTS_MAX:
        texts[-1] = f"and {len(receipt.rejected) - TEXTS_MAX + 1} more"
    return _pack([receipt.stored, texts])


def decode_receipt(data: bytes) -> Receipt:
    stored, texts = _fields(_unpack(data, "receipt", RECEIPT_BYTES_MAX), 2, "receipt")
    texts = _list(texts, TEXTS_MAX, "receipt")
    if not all(isinstance(text, str) for text in texts):
        raise ProtocolError("receipt: a reason is not a text")
    return Receipt(_number(stored, "stored"), tuple(clean(text) for text in texts))


def clean(text: str) -> str:
    """A peer's text made fit for a log line: printable ASCII, at most TEXT_BYTES_MAX bytes."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:TEXT_BYTES_MAX])


class FrameWriter:
    """Frames in, compressed bytes out."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=WINDOW_BYTES_LOG)
        self._zstd = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        self.bytes = 0
        """Written so far, as they inflate again."""

    def write(self, frame: bytes) -> bytes:
        assert FRAME_BYTES_MIN <= len(frame) <= FRAME_BYTES_MAX, len(frame)
        self.bytes += _LENGTH.size + len(frame)
        return self._zstd.compress(_LENGTH.pack(len(frame)) + frame)

    def flush(self) -> bytes:
        """Bytes with which the reader has every frame written so far."""
        return self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._zstd.flush()


class FrameReader:
    """Compressed bytes in, frames out. Holds at most one frame and what one slice inflates to, about 3 MiB."""

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max`: the limit on the inflated stream."""
        self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_BYTES_LOG).decompressobj()
        self._bytes_max = bytes_max
        self._bytes = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes, one by one: nothing is inflated before the frames already there are taken."""
        for start in range(0, len(data), _SLICE_BYTES):
            self._buffer += self._inflate(data[start : start + _SLICE_BYTES])
            yield from self._frames()

    def close(self) -> None:
        """The sender said that this was all: check that it is a whole number of frames."""
        if not self._zstd.eof or self._buffer:
            raise ProtocolError(f"frames: the stream is cut short after {self._bytes} bytes")

    def _inflate(self, data: bytes) -> bytes:
        if self._zstd.eof:
            raise ProtocolError("frames: bytes after the end of the zstd stream")
        try:
            inflated = self._zstd.decompress(data)
        except zstandard.ZstdError as error:
            raise ProtocolError(f"frames: not a zstd stream with a window of at most {1 << WINDOW_BYTES_LOG} bytes: {error}") from error
        if self._zstd.unused_data:
            raise ProtocolError("frames: bytes after the end of the zstd stream")
        self._bytes += len(inflated)
        if self._bytes > self._bytes_max:
            raise ProtocolError(f"frames: the stream inflates to more than {self._bytes_max} bytes")
        return inflated

    def _frames(self) -> Iterator[bytes]:
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if not FRAME_BYTES_MIN <= length <= FRAME_BYTES_MAX:
                raise ProtocolError(f"frames: a frame of {length} bytes; {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} are allowed")
            end = start + _LENGTH.size + length
            if end > len(self._buffer):
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def encode_frames(frames: Iterable[bytes]) -> bytes:
    """All of `frames` as one body."""
    writer = FrameWriter()
    return b"".join([*(writer.write(frame) for frame in frames), writer.finish()])


def decode_frames(body: bytes, bytes_max: int) -> list[bytes]:
    """The frames of a whole body."""
    reader = FrameReader(bytes_max)
    frames = list(reader.feed(body))
    reader.close()
    return frames


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(data: bytes, what: str, bytes_max: int) -> Any:
    """The canonical value in `data`: arrays, integers, byte strings, texts and nil only."""
    if len(data) > bytes_max:
        raise ProtocolError(f"{what}: {len(data)} bytes; at most {bytes_max} are allowed")
    try:
        value = msgpack.unpackb(
            data, max_array_len=HEADS_MAX, max_bin_len=ID_BYTES, max_str_len=TEXT_BYTES_MAX, max_map_len=0, max_ext_len=0
        )
        canonical = _pack(value) == data
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{what}: not msgpack within limits: {type(error).__name__}") from error
    if not canonical:
        raise ProtocolError(f"{what}: not in canonical msgpack")
    return value


def _list(value: Any, length_max: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > length_max:
        raise ProtocolError(f"{what}: not a list of at most {length_max} entries")
    return value


def _fields(value: Any, count: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise ProtocolError(f"{what}: not a list of {count} fields")
    return value


def _number(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= SEQ_MAX:
        raise ProtocolError(f"{what}: not a number from 0 to {SEQ_MAX}")
    return value


def _id(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise ProtocolError(f"{what}: not {ID_BYTES} bytes")
    return value


def _head(value: Any) -> Head:
    author, seq, hash_ = _fields(value, 3, "head")
    return Head(_id(author, "author"), _number(seq, "seq"), _id(hash_, "hash"))


def _place(value: Any) -> Place:
    seq, hash_ = _fields(value, 2, "place")
    return Place(_number(seq, "seq"), _id(hash_, "hash"))


def _ascending(values: list[Any], what: str) -> list[Any]:
    if any(left >= right for left, right in zip(values, values[1:])):
        raise ProtocolError(f"{what}: not in ascending order")
    return values
