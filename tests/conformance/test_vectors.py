"""The wire is pinned: these bytes say what they said when the format was made, and say it in no other way.

A test that fails here means another wire format. That needs a new version of it, never new vectors alone.
"""

from __future__ import annotations

import json
from typing import Any, Callable

import msgpack
import pytest
import zstandard

from nsync.auth.keys import verify
from nsync.authority.charter import AuthorId, author_id
from nsync.authority.documents import load
from nsync.authority.effective import Authority
from nsync.errors import RejectedSegment
from nsync.log import notices
from nsync.log.admission import admit, check_deps, check_segment
from nsync.log.lease import SignedHead
from nsync.log.notices import Fork, Notice
from nsync.log.segment import EMPTY, Dep, decode_frame, decode_header, encode_header, header_hash, root_of
from nsync.namespace.keys import from_key_bytes, key_bytes
from nsync.namespace.ops import decode_op
from nsync.transport import notices as exchange
from nsync.transport import repair, session, wire
from nsync.transport.requests import Verifier, authorization, body_digest
from nsync.transport.roster import Roster
from tests.conformance import make
from tests.conformance.vocabulary import encoded, plain, told, told_key
from tests.support.federation import KEYS

VECTORS: dict[str, Any] = {name: json.loads((make.DIRECTORY / f"{name}.json").read_text(encoding="ascii")) for name in make.FILES}


def rows(name: str) -> Any:
    return pytest.mark.parametrize("row", VECTORS[name], ids=lambda row: row["name"])


@pytest.mark.parametrize("name", make.FILES)
def test_this_code_makes_the_same_vectors(name: str) -> None:
    assert json.loads(json.dumps(make.FILES[name]())) == VECTORS[name]


@rows("keys")
def test_keys(row: Any) -> None:
    raw = bytes.fromhex(row["bytes"])
    assert told_key(from_key_bytes(raw)) == row["key"]
    assert key_bytes(from_key_bytes(raw)) == raw


@rows("ops")
def test_ops(row: Any) -> None:
    raw = bytes.fromhex(row["bytes"])
    said = decode_op(raw)
    assert [told(s) for s in said] == row["statements"]
    assert not said or encoded(said) == raw


@rows("segments")
def test_segments(row: Any) -> None:
    raw = bytes.fromhex(row["header_bytes"])
    header = decode_header(raw)
    assert make.told_header(header) == row["header"]
    assert encode_header(header) == raw
    assert header_hash(raw).hex() == row["hash"]
    segment = decode_frame(bytes.fromhex(row["frame"]))
    assert (segment.header, segment.header_bytes, segment.hash.hex()) == (header, raw, row["hash"])
    assert [op.hex() for op in segment.ops] == row["ops"]
    assert root_of(segment.ops) == header.root
    assert segment.frame.hex() == row["frame"]
    assert verify(bytes.fromhex(row["key"]), "segment", raw, bytes.fromhex(row["signature"]))


def test_the_segments_are_two_logs_of_whole_changesets() -> None:
    charter = load(VECTORS["charter"]["document"], verify)
    seen, one, two, _ = (decode_frame(bytes.fromhex(row["frame"])) for row in VECTORS["segments"])
    for segment in (seen, one, two):
        check_segment(segment, charter, verify)
    assert admit(seen, EMPTY).open_segments == 0
    middle = admit(one, EMPTY)
    assert middle.open_segments == 1
    assert admit(two, middle).open_segments == 0
    (dep,) = one.header.deps
    assert dep == Dep(seen.header.author, 1, seen.hash)
    check_deps(one.header, {dep: seen.header.stamp}, lambda dep: False)


def test_charter_names_federation_and_authors() -> None:
    row = VECTORS["charter"]
    charter = load(row["document"], verify)
    assert charter.federation.hex() == row["federation"]
    assert {i.name: i.author.hex() for i in charter.instances} == {name: ids["author"] for name, ids in row["authors"].items()}
    for name, ids in row["authors"].items():
        assert author_id(bytes.fromhex(ids["key"]), bytes.fromhex(ids["incarnation"])).hex() == ids["author"]
        assert Authority(charter).name(bytes.fromhex(ids["author"])) == name


@rows("messages")
def test_messages(row: Any) -> None:
    raw = bytes.fromhex(row["bytes"])
    roster = Roster(load(VECTORS["charter"]["document"], verify))
    assert plain(msgpack.unpackb(raw)) == row["says"]
    decode: dict[str, Callable[[bytes], Any]] = {
        "hello": wire.decode_hello,
        "hello reply": lambda data: wire.decode_hello_reply(data, roster),
        "tell": wire.decode_tell,
        "tell reply": wire.decode_tell_reply,
        "pull": wire.decode_have,
        "receipt": wire.decode_receipt,
    }
    message = decode[row["kind"]](raw)
    if row["kind"] == "pull":
        assert plain([3, [[author, places[::-1]] for author, places in message.items()]]) == row["says"]
    elif row["kind"] == "tell":
        assert plain([3, message]) == row["says"]
    elif row["kind"] == "hello reply" and message.heads:
        version, heads, changed = row["says"]
        named = [[plain(roster.authors[author]) if type(author) is int else author, *rest] for author, *rest in heads]
        assert plain(message) == [version, named, changed]
    else:
        assert plain(message) == row["says"]
    if "digest" in row:
        assert session.digest(message.heads).hex() == row["digest"]


@rows("notices")
def test_notices(row: Any) -> None:
    raw = bytes.fromhex(row["bytes"])
    if "id" not in row:
        word = exchange.decode(raw)
        assert plain(word) == row["says"] and exchange.encode(word) == raw
        return
    told = notices.check(Notice(row["kind"], raw), load(VECTORS["charter"]["document"], verify), verify)
    if isinstance(told, Fork):
        assert plain(tuple(told.proof)) == row["says"]
        assert notices.id_of_fork(told.header.author, told.header.first).hex() == row["id"]
    else:
        assert isinstance(told, SignedHead)
        assert plain(tuple(told)) == row["says"] and notices.head_notice(told).raw == raw
        assert notices.id_of_head(told).hex() == row["id"]


@rows("repair")
def test_repair(row: Any) -> None:
    what, _, kind = row["name"].partition(": ")
    if what == "question":
        raw = bytes.fromhex(row["bytes"])
        assert plain(repair.decode_first(raw) if kind == repair.BLOCKS else repair.decode_places(raw)) == row["says"]
        return
    raw, count = bytes.fromhex(row["inflated"]), len(row["says"])
    decode = {repair.BLOCKS: repair.decode_digests, repair.BITMAPS: repair.decode_bitmaps, repair.OPS: repair.decode_ops}[kind]
    encode = {repair.BLOCKS: repair.encode_digests, repair.BITMAPS: repair.encode_bitmaps, repair.OPS: repair.encode_ops}[kind]
    said = decode(zstandard.ZstdCompressor().compress(raw), count)
    assert said is not None and plain(said) == row["says"]
    assert zstandard.ZstdDecompressor().decompressobj().decompress(encode(said)) == raw


def test_request_header() -> None:
    row = VECTORS["request"]
    charter = load(VECTORS["charter"]["document"], verify)
    atlas, cms = (AuthorId(bytes.fromhex(VECTORS["charter"]["authors"][name]["author"])) for name in ("atlas", "cms"))
    body, nonce = bytes.fromhex(row["body"]), bytes.fromhex(row["nonce"])
    made = authorization(KEYS["atlas"], charter.federation, atlas, cms, row["method"], row["path"], body, row["now_ms"], nonce)
    assert made == row["authorization"]
    caller = Verifier(charter, cms).check(row["authorization"], row["method"], row["path"], row["now_ms"])
    assert (caller.instance.name, caller.body_digest) == ("atlas", body_digest(body))


@rows("refused")
def test_what_must_be_refused_is(row: Any) -> None:
    decode = decode_op if row["kind"] == "op" else decode_frame
    with pytest.raises(RejectedSegment) as caught:
        decode(bytes.fromhex(row["bytes"]))
    assert str(caught.value).startswith(row["error"])
