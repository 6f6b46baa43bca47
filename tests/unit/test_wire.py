"""The wire: what is sent arrives, what is not by the rules is a ProtocolError, and no input costs memory beyond its limits.

Also what follows from two heads messages (session.py).
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from typing import Callable

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.authority.charter import Place
from nsync.errors import ProtocolError
from nsync.log.segment import FRAME_BYTES_MAX, SEQ_MAX
from nsync.log.stored import BEGINNING, Head, Receipt, StoredSegment
from nsync.transport import session, wire

A, B, C = (bytes([i]) * 16 for i in (1, 2, 3))
MIB = 1 << 20

ids = st.binary(min_size=16, max_size=16)
seqs = st.integers(0, SEQ_MAX)
heads = st.lists(st.builds(Head, ids, seqs, ids), max_size=20, unique=True)
places = st.lists(st.builds(Place, seqs, ids), max_size=20, unique=True)
haves = st.dictionaries(ids, places, max_size=20)
frames = st.lists(st.binary(min_size=wire.FRAME_BYTES_MIN, max_size=500), max_size=20)

# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(ids)
def test_hello_round_trip(digest: bytes) -> None:
    data = wire.encode_hello(digest)
    assert wire.decode_hello(data) == (2, 2, digest)
    assert len(data) == 21


@given(st.none() | heads)
def test_hello_reply_round_trip(sent: list[Head] | None) -> None:
    data = wire.encode_hello_reply(sent)
    assert wire.decode_hello_reply(data) == (2, None if sent is None else sorted(sent))
    assert len(data) <= 5 + 46 * len(sent or [])


@given(haves)
def test_have_round_trip(have: dict[bytes, list[Place]]) -> None:
    data = wire.encode_have(have)
    assert wire.decode_have(data) == {author: sorted(places, reverse=True) for author, places in have.items()}
    size = sum(wire.AUTHOR_BYTES_MAX + len(places) * wire.PLACE_BYTES_MAX for places in have.values())
    assert len(data) <= wire.LIST_BYTES_MAX + size


@given(seqs, st.lists(st.text(), max_size=2 * wire.TEXTS_MAX))
def test_receipt_round_trip(stored: int, texts: list[str]) -> None:
    data = wire.encode_receipt(Receipt(stored, tuple(texts)))
    assert len(data) <= wire.RECEIPT_BYTES_MAX
    receipt = wire.decode_receipt(data)
    assert receipt.stored == stored
    assert len(receipt.rejected) == min(len(texts), wire.TEXTS_MAX)
    assert all(text.isprintable() and text.isascii() for text in receipt.rejected)


def test_the_bytes_are_pinned() -> None:
    assert wire.encode_hello(A).hex() == "930202c410" + "01" * 16
    assert wire.encode_hello_reply(None).hex() == "9202c0"
    assert wire.encode_hello_reply([Head(A, 300, B)]).hex() == "92029193c410" + "01" * 16 + "cd012cc410" + "02" * 16
    have = {B: [Place(7, A), BEGINNING], A: []}
    beginning, seventh = "9200c410" + "00" * 16, "9207c410" + "01" * 16
    assert wire.encode_have(have).hex() == "9292c410" + "01" * 16 + "90" + "92c410" + "02" * 16 + "92" + beginning + seventh
    assert wire.encode_receipt(Receipt(3, ("no\n",))).hex() == "920391a36e6f3f"
    assert session.digest([Head(A, 300, B)]).hex() == "af9fff5c4194ef4afc2b78805fe49041"


DECODERS: list[Callable[[bytes], object]] = [wire.decode_hello, wire.decode_hello_reply, wire.decode_have, wire.decode_receipt]
VALID = [
    wire.encode_hello(A),
    wire.encode_hello_reply([Head(A, 1, B), Head(C, 7, A)]),
    wire.encode_have({A: [], B: [Place(2, C), BEGINNING]}),
]
VALID += [wire.encode_receipt(Receipt(1, ("a", "b")))]


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=200) | st.builds(msgpack.packb, st.recursive(st.none() | st.integers(0, 9) | ids, st.lists)))
def test_random_bytes_are_a_protocol_error_or_canonical(decode: Callable[[bytes], object], data: bytes) -> None:
    refused_or_canonical(decode, data)


@pytest.mark.parametrize(("decode", "valid"), list(zip(DECODERS, VALID)))
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), end=st.integers(0, 10_000))
def test_flipped_and_cut_messages(decode: Callable[[bytes], object], valid: bytes, position: int, bit: int, end: int) -> None:
    flipped = bytearray(valid)
    flipped[position % len(valid)] ^= 1 << bit
    refused_or_canonical(decode, bytes(flipped))
    with pytest.raises(ProtocolError):
        decode(valid[: end % len(valid)])


def refused_or_canonical(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert 0 < len(str(error)) < 300
    else:
        assert msgpack.packb(msgpack.unpackb(data)) == data


@pytest.mark.parametrize(
    ("decode", "value", "text"),
    [
        (wire.decode_hello, [1, 1, A], "versions 1 to 1, this nsync speaks 2; upgrade the older one"),
        (wire.decode_hello, [3, 4, A], "versions 3 to 4, this nsync speaks 2"),
        (wire.decode_hello, [2, 1, A], "versions 2 to 1"),
        (wire.decode_hello, [True, 2, A], "version: not a number"),
        (wire.decode_hello, [2, 2, A[:15]], "digest: not 16 bytes"),
        (wire.decode_hello, [2, 2, A, 1], "3 fields"),
        (wire.decode_hello_reply, [1, None], "chose protocol version 1, this nsync speaks 2; upgrade the older one"),
        (wire.decode_hello_reply, [True, None], "version: not a number"),
        (wire.decode_hello_reply, [[b"x"] * 999, None], "^version: not a number from 0 to [0-9]*$"),
        (wire.decode_hello_reply, [2, [[B, 1, A], [A, 1, A]]], "not in ascending order"),
        (wire.decode_hello_reply, [2, [[A, 1, A]] * 2], "not in ascending order"),
        (wire.decode_hello_reply, [2, [[A, -1, A]]], "seq: not a number"),
        (wire.decode_hello_reply, [2, [[A, 1 << 63, A]]], "seq: not a number"),
        (wire.decode_hello_reply, [2, [[A, 1.0, A]]], "seq: not a number"),
        (wire.decode_have, [[A, []], [A, []]], "not in ascending order"),
        (wire.decode_have, [[A, [[2, A], [1, A]]]], "places: not in ascending order"),
        (wire.decode_have, [[A, [[1, A]] * 2]], "places: not in ascending order"),
        (wire.decode_have, [[A, [[i, A] for i in range(wire.PLACES_MAX + 1)]]], f"places: not a list of at most {wire.PLACES_MAX} entries"),
        (wire.decode_have, [[A, [[1, A, 1]]]], "place: not a list of 2 fields"),
        (wire.decode_have, [[A, [[-1, A]]]], "seq: not a number"),
        (wire.decode_have, [[A, 1]], "places: not a list"),
        (wire.decode_have, {A: 1}, "not msgpack within limits"),
        (wire.decode_have, [[A, msgpack.Timestamp(1)]], "not msgpack within limits"),
        (wire.decode_receipt, [1, [1]], "not a text"),
    ],
)
def test_what_is_not_a_message_is_named(decode: Callable[[bytes], object], value: object, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        decode(msgpack.packb(value))


def test_non_canonical_integers_are_refused() -> None:
    with pytest.raises(ProtocolError, match="canonical"):
        wire.decode_hello(b"\x93\xcc\x02\x02\xc4\x10" + A)


def test_lengths_are_bounded_before_they_are_allocated() -> None:
    for huge in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 60, b"\xdc\xff\xff" * 20):
        assert peak_bytes(lambda huge=huge: refuse(lambda: wire.decode_hello(huge))) < MIB  # type: ignore[misc]
    with pytest.raises(ProtocolError, match="at most 64"):
        wire.decode_hello(bytes(65))


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(frames, st.integers(1, 300))
def test_frames_round_trip_in_pieces_of_any_size(sent: list[bytes], size: int) -> None:
    body = wire.encode_frames(sent)
    reader = wire.FrameReader(MIB)
    received = [frame for start in range(0, len(body), size) for frame in reader.feed(body[start : start + size])]
    reader.close()
    assert received == sent


def test_frames_of_the_greatest_size_pass() -> None:
    sent = [bytes(FRAME_BYTES_MAX), bytes(wire.FRAME_BYTES_MIN)]
    assert wire.decode_frames(wire.encode_frames(sent), 2 * MIB) == sent


@given(frames)
def test_after_a_flush_the_reader_has_every_frame(sent: list[bytes]) -> None:
    writer, reader = wire.FrameWriter(), wire.FrameReader(MIB)
    for frame in sent:
        assert list(reader.feed(writer.write(frame) + writer.flush())) == [frame]
    assert writer.bytes == sum(4 + len(frame) for frame in sent)
    assert not list(reader.feed(writer.finish()))
    reader.close()


@given(frames.filter(bool), st.integers(0, 100_000))
def test_a_list_cut_short_gives_its_whole_frames_and_is_told(sent: list[bytes], cut: int) -> None:
    body = wire.encode_frames(sent)
    reader = wire.FrameReader(MIB)
    received = list(reader.feed(body[: cut % len(body)]))
    assert received == sent[: len(received)]
    with pytest.raises(ProtocolError, match="cut short"):
        reader.close()


@given(st.binary(max_size=300))
def test_random_streams_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_frames(data, MIB)


@given(frames, st.integers(0, 100_000), st.integers(0, 7))
def test_a_flipped_bit_is_a_protocol_error_or_other_frames(sent: list[bytes], position: int, bit: int) -> None:
    """The frames are signed, so the stream needs no checksum."""
    body = bytearray(wire.encode_frames(sent))
    body[position % len(body)] ^= 1 << bit
    try:
        received = wire.decode_frames(bytes(body), MIB)
    except ProtocolError:
        return
    assert all(wire.FRAME_BYTES_MIN <= len(frame) <= FRAME_BYTES_MAX for frame in received)


@settings(max_examples=50)
@given(st.binary(max_size=2000))
def test_random_content_in_a_good_stream(data: bytes) -> None:
    try:
        wire.decode_frames(zstandard.compress(data), MIB)
    except ProtocolError:
        return


@pytest.mark.parametrize("length", [0, wire.FRAME_BYTES_MIN - 1, FRAME_BYTES_MAX + 1, 0xFFFFFFFF])
def test_a_length_beyond_the_limit_is_refused_before_its_frame(length: int) -> None:
    body = zstandard.compress(struct.pack(">I", length))
    assert peak_bytes(lambda: refuse(lambda: wire.decode_frames(body, wire.PULL_BYTES_MAX), f"a frame of {length} bytes")) < MIB


@pytest.mark.parametrize("rest", [b"\0", struct.pack(">I", 64), struct.pack(">I", 64) + bytes(63)])
def test_a_whole_stream_with_part_of_a_frame_is_told(rest: bytes) -> None:
    refuse(lambda: wire.decode_frames(zstandard.compress(struct.pack(">I", 64) + bytes(64) + rest), MIB), "cut short")


def test_bytes_after_the_stream_are_refused() -> None:
    body = wire.encode_frames([bytes(64)])
    for tail in (b"x", body):
        refuse(lambda tail=tail: wire.decode_frames(body + tail, MIB), "after the end")  # type: ignore[misc]
    reader = wire.FrameReader(MIB)
    assert list(reader.feed(body)) == [bytes(64)]
    refuse(lambda: list(reader.feed(b"x")), "after the end")


def test_a_great_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=wire.WINDOW_BYTES_LOG + 1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(bytes(4 * MIB)) + compressor.flush()
    refuse(lambda: wire.decode_frames(body, 8 * MIB), "window")


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    """1 GiB in 33 kB, as zeros and as frames that are taken one by one."""
    zeros = bomb(bytes(MIB), 1024)
    assert len(zeros) < 40_000
    assert peak_bytes(lambda: refuse(lambda: wire.decode_frames(zeros, wire.BODY_BYTES_MAX), "a frame of 0 bytes")) < 6 * MIB
    whole = bomb(struct.pack(">I", MIB) + bytes(MIB), 1024)

    def take_all() -> None:
        reader = wire.FrameReader(wire.PULL_BYTES_MAX)
        for frame in reader.feed(whole):
            assert len(frame) == MIB

    assert peak_bytes(lambda: refuse(take_all, f"more than {wire.PULL_BYTES_MAX} bytes")) < 8 * MIB


def bomb(content: bytes, times: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=wire.WINDOW_BYTES_LOG)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def pieces() -> Iterator[bytes]:
        for _ in range(times):
            yield compressor.compress(content)
        yield compressor.flush()

    return b"".join(pieces())


def refuse(do: Callable[[], object], text: str = ".") -> None:
    with pytest.raises(ProtocolError, match=text):
        do()


def peak_bytes(do: Callable[[], object]) -> int:
    """What Python allocates at most while `do` runs."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ── session ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mine", "theirs", "unknown", "behind"),
    [
        ([], [], [], {}),
        ([Head(A, 1, A)], [Head(A, 1, A)], [], {}),
        ([], [Head(A, 1, A)], [Head(A, 1, A)], {}),
        ([Head(A, 1, A)], [], [], {A: []}),
        ([Head(A, 1, A)], [Head(A, 2, B)], [Head(A, 2, B)], {}),
        ([Head(A, 2, A)], [Head(A, 1, B)], [], {A: [Place(1, B)]}),
        ([Head(A, 2, A), Head(A, 3, C)], [Head(A, 2, A)], [], {A: [Place(2, A)]}),
        ([Head(A, 2, A), Head(A, 3, C)], [Head(A, 2, A), Head(A, 3, C)], [], {}),
        ([Head(A, 2, A), Head(A, 3, C)], [Head(A, 2, A), Head(A, 9, B)], [Head(A, 9, B)], {}),
        ([Head(A, 9, A)], [Head(A, 2, A), Head(A, 3, C)], [], {A: [Place(3, C), Place(2, A)]}),
        ([Head(A, 2, A), Head(B, 1, B)], [Head(B, 2, B), Head(A, 1, A)], [Head(B, 2, B)], {A: [Place(1, A)]}),
    ],
)
def test_behind(mine: list[Head], theirs: list[Head], unknown: list[Head], behind: dict[bytes, list[Place]]) -> None:
    assert session.behind(mine, theirs, unknown) == behind


@given(heads, heads, st.randoms())
def test_equal_digests_mean_that_there_is_nothing_to_do(mine: list[Head], theirs: list[Head], random: object) -> None:
    shuffled = list(mine)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert session.digest(shuffled) == session.digest(mine)
    assert (session.digest(mine) == session.digest(theirs)) == (sorted(mine) == sorted(theirs))
    assert session.behind(mine, shuffled, []) == {}


def test_forked() -> None:
    assert session.forked([Head(A, 1, A), Head(B, 1, A), Head(B, 1, B), Head(C, 9, A), Head(C, 2, A)]) == {B, C}


@given(haves, st.integers(wire.AUTHOR_BYTES_MAX, 2000))
def test_questions_are_bounded_and_ask_everything(have: dict[bytes, list[Place]], bytes_max: int) -> None:
    asked = list(session.questions(have, bytes_max))
    assert {author: places for question in asked for author, places in question.items()} == have
    assert sum(map(len, asked)) == len(have)
    assert all(len(wire.encode_have(question)) <= bytes_max or len(question) == 1 for question in asked)


def test_of_too_many_places_the_newest_are_named_and_the_beginning() -> None:
    many = [*(Place(seq, A) for seq in range(wire.PLACES_MAX + 50, 0, -1)), BEGINNING]
    (question,) = session.questions({A: many})
    assert wire.decode_have(wire.encode_have(question)) == {A: [*many[: wire.PLACES_MAX - 1], BEGINNING]}
    full = list(session.questions({bytes([i, j]) * 8: many for i in range(9) for j in range(9)}))
    assert len(full) > 1 and all(len(wire.encode_have(question)) <= wire.HAVE_BYTES_MAX for question in full)


def test_who_is_sent_segments_is_where_they_end() -> None:
    """Also on the second branch, whose beginning the first has left behind."""

    def segment(first: int, last: int, prev: bytes, hash_: bytes) -> StoredSegment:
        return StoredSegment(A, first, last, b"", prev, hash_)

    assert session.advance({A: [], B: [Place(1, B)]}, [segment(1, 2, bytes(16), A)]) == {A: [Place(2, A)], B: [Place(1, B)]}
    two = session.advance({A: [BEGINNING, Place(9, C)]}, [segment(1, 2, bytes(16), A), segment(3, 4, A, B), segment(3, 3, A, C)])
    assert set(two[A]) == {Place(9, C), Place(4, B), Place(3, C)}
