"""What goes over the wire between two peers, how much of it, and for how long.

    hello     → [version_min, version_max, digest, roster, since]      at most 57 bytes
              ← [version, nil, false]                                  in sync, 4 bytes
              ← [version, [[author, seq, hash], …], changed]           not in sync: 25 bytes per head, as a rule
    tell      → [version, [[author, seq, hash], …]]                    heads that are new here
              ← will_ask                                               whether the peer comes and asks for what it lacks
    pull      → [version, [[author, [[seq, hash], …]], …]]             the logs asked for, and places in them that the caller has
              ← frames
    push      → frames
              ← [stored, [text, …]]                                    the receipt

In an answer to hello an author is its number in the roster (the sorted authors of the charter) when both have the same one.

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
from nsync.errors import ProtocolError, RejectedSegment
from nsync.log.segment import FRAME_BYTES_MAX, SEQ_MAX, SIGNATURE_BYTES
from nsync.log.stored import Head, Receipt
from nsync.namespace import codec
from nsync.transport import streams
from nsync.transport.roster import Roster

VERSION = 3


class Versions(NamedTuple):
    """A range of protocol versions."""

    oldest: int
    newest: int


SPOKEN = Versions(VERSION, VERSION)

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

HELLO_BYTES_MAX = 128
"""Of this version at most 57; newer ones may say more."""
HEADS_BYTES_MAX = HEADS_MAX * 48
"""A head is 46 bytes at most: its author by number 1 to 3, or whole 18, its seq 1 to 9, and 19."""
TELL_REPLY_BYTES_MAX = 16

PLACES_MAX = 256
"""Places of one author in a pull: each branch has one per doubling of its length, 30 for a thousand million segments."""
LIST_BYTES_MAX = 5
"""What stands before the entries of a list, its message's version included."""
AUTHOR_BYTES_MAX = 1 + 18 + LIST_BYTES_MAX
PLACE_BYTES_MAX = 1 + 9 + 18
HAVE_BYTES_MAX = 1 << 18
"""A pull: 9000 places, or 4096 authors of whom the caller has nothing. Who wants more asks several times."""

TEXT_BYTES_MAX = 512
TEXTS_MAX = 32
"""Reasons in a receipt: enough to see what is wrong."""
RECEIPT_BYTES_MAX = TEXTS_MAX * (TEXT_BYTES_MAX + 3) + 16

_LENGTH = struct.Struct(">I")


class Hello(NamedTuple):
    """The question."""

    version_min: int
    version_max: int
    """Which versions I speak: these two fields stand first in every version."""
    digest: bytes
    """Of my heads."""
    roster: bytes
    """Of my charter's authors (`Roster`)."""
    since: Optional[bytes] = None
    """Of your heads as I know them: tell me only of the authors whose heads are others now."""


class HelloReply(NamedTuple):
    """The answer."""

    version: int
    """To use from here on: the highest that both speak."""
    heads: Optional[list[Head]]
    """Mine, unless they are the same as yours."""
    changed: bool = False
    """Whether these are only those of the authors whose heads are others than you know."""


def pick(theirs: Versions, mine: Versions = SPOKEN) -> int:
    """The highest version that both speak. Raises ProtocolError when there is none."""
    version = min(theirs.newest, mine.newest)
    if version < max(theirs.oldest, mine.oldest):
        spoken = f"peer speaks protocol versions {_range(theirs)}, this nsync speaks {_range(mine)}"
        raise ProtocolError(f"hello: {spoken}; upgrade the older one")
    return version


def encode_hello(digest: bytes, roster: bytes, since: Optional[bytes] = None) -> bytes:
    return _pack(Hello(*SPOKEN, digest, roster, since))


def decode_hello(data: bytes) -> Hello:
    """A question, of which this nsync may know the first fields only: a newer peer's has more."""
    fields = _list(_unpack(data, "hello", HELLO_BYTES_MAX), HELLO_BYTES_MAX, "hello")
    theirs = Versions(*(number(field, "version") for field in _fields(fields[:2], 2, "hello")))
    pick(theirs)
    digest, roster, since = _fields(fields[2:5] if theirs.newest > VERSION else fields[2:], 3, "hello beyond its versions")
    return Hello(*theirs, _id(digest, "digest"), _id(roster, "roster"), None if since is None else _id(since, "since"))


def encode_hello_reply(reply: HelloReply, roster: Optional[Roster] = None) -> bytes:
    """`roster`: when the peer has it too."""
    return _pack([reply.version, None if reply.heads is None else _plain_heads(reply.heads, roster), reply.changed])


def decode_hello_reply(data: bytes, roster: Roster) -> HelloReply:
    version, heads, changed = _fields(_unpack(data, "hello reply", HEADS_BYTES_MAX), 3, "hello reply")
    _check_version(version, "hello reply")
    if type(changed) is not bool or (changed and heads is None):
        raise ProtocolError("hello reply: it does not say whether these are all heads")
    return HelloReply(version, None if heads is None else _heads(heads, roster), changed)


def encode_tell(heads: Iterable[Head]) -> bytes:
    return _pack([VERSION, _plain_heads(heads, None)])


def decode_tell(data: bytes) -> list[Head]:
    version, heads = _fields(_unpack(data, "tell", HEADS_BYTES_MAX), 2, "tell")
    _check_version(version, "tell")
    return _heads(heads, None)


def encode_tell_reply(will_ask: bool) -> bytes:
    return _pack(will_ask)


def decode_tell_reply(data: bytes) -> bool:
    will_ask = _unpack(data, "tell reply", TELL_REPLY_BYTES_MAX)
    if type(will_ask) is not bool:
        raise ProtocolError("tell reply: not a boolean")
    return will_ask


def encode_have(have: Mapping[bytes, Sequence[Place]]) -> bytes:
    return _pack([VERSION, [[author, sorted(places)] for author, places in sorted(have.items())]])


def decode_have(data: bytes) -> dict[bytes, list[Place]]:
    version, have = _fields(_unpack(data, "have", HAVE_BYTES_MAX), 2, "have")
    _check_version(version, "have")
    entries = [_fields(entry, 2, "have") for entry in _list(have, HEADS_MAX, "have")]
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
    if not all(isinstance(text, str) for text in _list(texts, TEXTS_MAX, "receipt")):
        raise ProtocolError("receipt: a reason is not a text")
    return Receipt(number(stored, "stored"), tuple(clean(text) for text in texts))


def clean(text: str) -> str:
    """A peer's text made fit for a log line: printable ASCII, at most TEXT_BYTES_MAX bytes."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:TEXT_BYTES_MAX])


class FrameWriter:
    """Frames in, compressed bytes out."""

    def __init__(self) -> None:
        self._zstd = streams.compressor(3)
        self.bytes = 0
        """Written so far, as they inflate again."""

    def write_all(self, frames: Iterable[bytes]) -> bytes:
        """Bytes with which the reader has every frame written so far."""
        return b"".join([*map(self.write, frames), self.flush()])

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
        self._stream = streams.Inflater("frames", bytes_max)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes, one by one: nothing is inflated before the frames already there are taken."""
        for inflated in self._stream.feed(data):
            self._buffer += inflated
            yield from self._frames()

    def close(self) -> None:
        """The sender said that this was all: check that it is a whole number of frames."""
        self._stream.close(whole=not self._buffer)

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
    return bytes(msgpack.packb(value))


def _unpack(data: bytes, what: str, bytes_max: int) -> Any:
    """The canonical value in `data`: arrays, integers, byte strings, texts and nil only."""
    if len(data) > bytes_max:
        raise ProtocolError(f"{what}: {len(data)} bytes; at most {bytes_max} are allowed")
    try:
        value = msgpack.unpackb(
            data, max_array_len=HEADS_MAX, max_bin_len=ID_BYTES, max_str_len=TEXT_BYTES_MAX, max_map_len=0, max_ext_len=0
        )
        if _pack(value) != data:
            raise ProtocolError(f"{what}: not in canonical msgpack")
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{what}: not msgpack within limits: {type(error).__name__}") from error
    return value


def unpack_fields(data: bytes, what: str, count: int, bytes_max: int, items_max: int) -> list[Any]:
    """The `count` fields of a message in the form of ops (namespace.codec), with tuples, and byte strings of any length."""
    if len(data) > bytes_max:
        raise ProtocolError(f"{what}: {len(data)} bytes; at most {bytes_max} are allowed")
    try:
        return _fields(codec.decode(data, what, items_max=items_max), count, what)
    except RejectedSegment as error:
        raise ProtocolError(str(error)) from error


def _list(value: Any, length_max: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > length_max:
        raise ProtocolError(f"{what}: not a list of at most {length_max} entries")
    return value


def _fields(value: Any, count: int, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ProtocolError(f"{what}: not a list of {count} fields")
    return list(value)


def number(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= SEQ_MAX:
        raise ProtocolError(f"{what}: not a number from 0 to {SEQ_MAX}")
    return value


def _id(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise ProtocolError(f"{what}: not {ID_BYTES} bytes")
    return value


def _plain_heads(heads: Iterable[Head], roster: Optional[Roster]) -> list[Any]:
    return [[head.author if roster is None else roster.name(head.author), head.seq, head.hash] for head in sorted(heads)]


def _heads(value: Any, roster: Optional[Roster]) -> list[Head]:
    return _ascending([_head(head, roster) for head in _list(value, HEADS_MAX, "heads")], "heads")


def _head(value: Any, roster: Optional[Roster]) -> Head:
    name, seq, hash_ = _fields(value, 3, "head")
    return Head(_author(name, roster), number(seq, "seq"), _id(hash_, "hash"))


def _author(name: Any, roster: Optional[Roster]) -> bytes:
    if roster is None or type(name) is not int:
        return _id(name, "author")
    if not 0 <= name < len(roster.authors):
        raise ProtocolError(f"head: author number {name} of {len(roster.authors)}; compare the charters")
    return roster.authors[name]


def _check_version(version: Any, what: str) -> None:
    if not SPOKEN.oldest <= number(version, "version") <= SPOKEN.newest:
        raise ProtocolError(f"{what}: in version {version} of the protocol, this nsync speaks {_range(SPOKEN)}; upgrade the older one")


def _range(versions: Versions) -> str:
    return f"{versions.oldest} to {versions.newest}"


def _place(value: Any) -> Place:
    seq, hash_ = _fields(value, 2, "place")
    return Place(number(seq, "seq"), _id(hash_, "hash"))


def _ascending(values: list[Any], what: str) -> list[Any]:
    if any(left >= right for left, right in zip(values, values[1:])):
        raise ProtocolError(f"{what}: not in ascending order")
    return values
