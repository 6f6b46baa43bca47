"""The wire: what is sent arrives, what is not by the rules is a ProtocolError, and no input costs memory beyond its limits.

Also what follows from two heads messages (session.py).
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from functools import partial
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
from nsync.testing.federation import federation
from nsync.transport import session, streams, wire
from nsync.transport.roster import Roster

A, B, C = (bytes([i]) * 16 for i in (1, 2, 3))
ROSTER = Roster(federation(7).charter)
decode_reply = partial(wire.decode_hello_reply, roster=ROSTER)
MIB = 1 << 20

ids = st.binary(min_size=16, max_size=16)
seqs = st.integers(0, SEQ_MAX)
heads = st.lists(st.builds(Head, ids, seqs, ids), max_size=20, unique=True)
places = st.lists(st.builds(Place, seqs, ids), max_size=20, unique=True)
haves = st.dictionaries(ids, places, max_size=20)
frames = st.lists(st.binary(min_size=wire.FRAME_BYTES_MIN, max_size=500), max_size=20)

# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(ids, ids, st.none() | ids)
def test_hello_round_trip(digest: bytes, roster: bytes, since: bytes | None) -> None:
    data = wire.encode_hello(digest, roster, since)
    assert wire.decode_hello(data) == (3, 3, digest, roster, since)
    assert len(data) <= 57


@pytest.mark.parametrize(
    ("theirs", "mine", "picked"),
    [
        ((3, 3), (3, 3), 3),
        ((1, 3), (3, 3), 3),
        ((3, 9), (3, 3), 3),
        ((1, 9), (3, 5), 5),
        ((4, 9), (3, 5), 5),
        ((1, 4), (3, 5), 4),
        ((1, 2), (3, 5), None),
        ((6, 9), (3, 5), None),
        ((5, 3), (3, 5), None),
    ],
)
def test_the_highest_common_version_is_picked(theirs: tuple[int, int], mine: tuple[int, int], picked: int | None) -> None:
    if picked is not None:
        assert wire.pick(wire.Versions(*theirs), wire.Versions(*mine)) == picked
    else:
        with pytest.raises(ProtocolError, match=f"versions {theirs[0]} to {theirs[1]}, this nsync speaks 3 to 5; upgrade the older one"):
            wire.pick(wire.Versions(*theirs), wire.Versions(*mine))


def test_a_newer_peer_may_say_more_in_its_hello() -> None:
    newer = msgpack.packb([2, 4, A, B, None, "something new", [7]])
    assert wire.decode_hello(newer) == (2, 4, A, B, None)
    refuse(lambda: wire.decode_hello(msgpack.packb([2, 3, A, B, None, 7])), "3 fields")


@given(st.none() | heads, st.booleans())
def test_hello_reply_round_trip(sent: list[Head] | None, changed: bool) -> None:
    reply = wire.HelloReply(3, None if sent is None else sorted(sent), changed and sent is not None)
    for roster in (None, ROSTER):
        data = wire.encode_hello_reply(reply, roster)
        assert wire.decode_hello_reply(data, ROSTER) == reply
        assert len(data) <= 6 + 46 * len(sent or [])


@given(st.lists(seqs, min_size=1, max_size=7, unique=True))
def test_heads_take_30_bytes_per_author_between_two_of_one_charter(numbers: list[int]) -> None:
    sent = [Head(author, seq, A) for author, seq in zip(ROSTER.authors, numbers)]
    data = wire.encode_hello_reply(wire.HelloReply(3, sent), ROSTER)
    assert wire.decode_hello_reply(data, ROSTER).heads == sent
    assert len(data) <= 4 + 30 * len(sent)
    usual = wire.encode_hello_reply(wire.HelloReply(3, [head._replace(seq=1 << 31) for head in sent]), ROSTER)
    assert len(usual) == 4 + 25 * len(sent)


@given(heads)
def test_tell_round_trip(sent: list[Head]) -> None:
    assert wire.decode_tell(wire.encode_tell(sent)) == sorted(sent)
    for will_ask in (True, False):
        assert wire.decode_tell_reply(wire.encode_tell_reply(will_ask)) is will_ask


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
    assert wire.encode_hello(A, B, C).hex() == "950303" + "".join("c410" + one.hex() for one in (A, B, C))
    assert wire.encode_hello(A, B).hex() == "950303c410" + "01" * 16 + "c410" + "02" * 16 + "c0"
    assert wire.encode_hello_reply(wire.HelloReply(3, None)).hex() == "9303c0c2"
    head = Head(A, 300, B)
    whole = "9193c410" + "01" * 16 + "cd012cc410" + "02" * 16
    assert wire.encode_hello_reply(wire.HelloReply(3, [head])).hex() == "9303" + whole + "c2"
    known = head._replace(author=ROSTER.authors[5])
    assert wire.encode_hello_reply(wire.HelloReply(3, [known], True), ROSTER).hex() == "9303919305cd012cc410" + "02" * 16 + "c3"
    assert wire.encode_tell([head]).hex() == "9203" + whole
    have = {B: [Place(7, A), BEGINNING], A: []}
    beginning, seventh = "9200c410" + "00" * 16, "9207c410" + "01" * 16
    asked = "9292c410" + "01" * 16 + "90" + "92c410" + "02" * 16 + "92" + beginning + seventh
    assert wire.encode_have(have).hex() == "9203" + asked
    assert wire.encode_receipt(Receipt(3, ("no\n",))).hex() == "920391a36e6f3f"
    assert session.digest([head]).hex() == "af9fff5c4194ef4afc2b78805fe49041"


DECODERS: list[Callable[[bytes], object]] = [
    wire.decode_hello,
    decode_reply,
    wire.decode_have,
    wire.decode_receipt,
    wire.decode_tell,
    wire.decode_tell_reply,
]
VALID = [
    wire.encode_hello(A, B, C),
    wire.encode_hello_reply(wire.HelloReply(3, [Head(A, 1, B), Head(C, 7, A), Head(ROSTER.authors[2], 5, A)]), ROSTER),
    wire.encode_have({A: [], B: [Place(2, C), BEGINNING]}),
    wire.encode_receipt(Receipt(1, ("a", "b"))),
    wire.encode_tell([Head(A, 1, B), Head(C, 7, A)]),
    wire.encode_tell_reply(True),
]


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
        (wire.decode_hello, [2, 2, A, A, A], "versions 2 to 2, this nsync speaks 3 to 3; upgrade the older one"),
        (wire.decode_hello, [4, 5, A], "versions 4 to 5, this nsync speaks 3 to 3"),
        (wire.decode_hello, [3, 2, A, A, A], "versions 3 to 2"),
        (wire.decode_hello, [3], "2 fields"),
        (wire.decode_hello, [True, 3, A, A, A], "version: not a number"),
        (wire.decode_hello, [3, 3, A[:15], A, A], "digest: not 16 bytes"),
        (wire.decode_hello, [3, 3, A, None, A], "roster: not 16 bytes"),
        (wire.decode_hello, [3, 3, A, A, 1], "since: not 16 bytes"),
        (wire.decode_hello, [3, 3, A, A, A, 1], "3 fields"),
        (wire.decode_hello, [3, 4, A, A], "3 fields"),
        (decode_reply, [2, None, False], "in version 2 of the protocol, this nsync speaks 3 to 3; upgrade the older one"),
        (decode_reply, [4, None, False], "in version 4 of the protocol"),
        (decode_reply, [True, None, False], "version: not a number"),
        (decode_reply, [[b"x"] * 999, None, False], "^version: not a number from 0 to [0-9]*$"),
        (decode_reply, [3, [[B, 1, A], [A, 1, A]], False], "not in ascending order"),
        (decode_reply, [3, [[A, 1, A]] * 2, False], "not in ascending order"),
        (decode_reply, [3, [[2, 1, A], [1, 1, A]], False], "not in ascending order"),
        (decode_reply, [3, [[7, 1, A]], False], "author number 7 of 7; compare the charters"),
        (decode_reply, [3, [[-1, 1, A]], False], "author number -1 of 7"),
        (decode_reply, [3, [[True, 1, A]], False], "author: not 16 bytes"),
        (decode_reply, [3, [[A, -1, A]], False], "seq: not a number"),
        (decode_reply, [3, [[A, 1 << 63, A]], False], "seq: not a number"),
        (decode_reply, [3, [[A, 1.0, A]], False], "seq: not a number"),
        (decode_reply, [3, [], 1], "whether these are all heads"),
        (decode_reply, [3, None, True], "whether these are all heads"),
        (wire.decode_tell, [3, [[2, 1, A]]], "author: not 16 bytes"),
        (wire.decode_tell, [2, []], "in version 2"),
        (wire.decode_tell_reply, 1, "not a boolean"),
        (wire.decode_have, [2, []], "in version 2"),
        (wire.decode_have, [3, [[A, []], [A, []]]], "not in ascending order"),
        (wire.decode_have, [3, [[A, [[2, A], [1, A]]]]], "places: not in ascending order"),
        (wire.decode_have, [3, [[A, [[1, A]] * 2]]], "places: not in ascending order"),
        (wire.decode_have, [3, [[A, [[i, A] for i in range(wire.PLACES_MAX + 1)]]]], "places: not a list of at most 256 entries"),
        (wire.decode_have, [3, [[A, [[1, A, 1]]]]], "place: not a list of 2 fields"),
        (wire.decode_have, [3, [[A, [[-1, A]]]]], "seq: not a number"),
        (wire.decode_have, [3, [[A, 1]]], "places: not a list"),
        (wire.decode_have, {A: 1}, "not msgpack within limits"),
        (wire.decode_have, [3, [[A, msgpack.Timestamp(1)]]], "not msgpack within limits"),
        (wire.decode_receipt, [1, [1]], "not a text"),
    ],
)
def test_what_is_not_a_message_is_named(decode: Callable[[bytes], object], value: object, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        decode(msgpack.packb(value))


def test_non_canonical_integers_are_refused() -> None:
    with pytest.raises(ProtocolError, match="canonical"):
        wire.decode_hello(b"\x95\xcc\x03\x03" + 3 * (b"\xc4\x10" + A))


def test_lengths_are_bounded_before_they_are_allocated() -> None:
    for huge in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 60, b"\xdc\xff\xff" * 20):
        assert peak_bytes(lambda huge=huge: refuse(lambda: wire.decode_hello(huge))) < MIB  # type: ignore[misc]
    with pytest.raises(ProtocolError, match="at most 128"):
        wire.decode_hello(bytes(129))


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
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=streams.WINDOW_BYTES_LOG + 1)
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
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=streams.WINDOW_BYTES_LOG)
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


@given(heads, heads)
def test_what_changed_and_what_was_known_make_the_whole(before: list[Head], now: list[Head]) -> None:
    delta = session.changed(before, now)
    gone = {head.author for head in before} - {head.author for head in now}
    assert (delta is None) == bool(gone)
    if delta is not None:
        assert session.merged(before, delta) == sorted(now)
        assert not {head.author for head in delta} & {head.author for head in set(before) & set(now)} or set(delta) - set(before)


@given(st.lists(heads, min_size=1, max_size=6), st.data())
def test_whoever_is_told_what_changed_knows_all(states: list[list[Head]], data: st.DataObject) -> None:
    """Whatever the caller has forgotten, and whatever answer was lost on its way."""
    told, known = session.Told(), None
    for state in states:
        since = session.digest(known) if known is not None and data.draw(st.booleans()) else None
        reply = told.answer("atlas", wire.Hello(3, 3, data.draw(ids), A, since), state)
        if data.draw(st.booleans()):
            continue
        assert reply.heads is not None
        known = session.merged(known or (), reply.heads) if reply.changed else reply.heads
        assert sorted(known) == sorted(state)


def test_missing_ops() -> None:
    theirs = [Head(A, 9, A), Head(B, 5, A), Head(B, 7, B), Head(C, 2, A)]
    assert session.missing_ops([Head(A, 4, A), Head(C, 9, C)], theirs) == {A: 5, B: 7, C: 1}


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
