"""Makes the vectors that pin the wire: `python -m tests.conformance.make`, when a format gets a new version and then only.

Each file is a table of rows {name, the bytes in hex, what they say}. Everything is made from the fixed keys of
tests/support/federation, and signatures are deterministic, so the same bytes come out wherever this is run. Another
implementation needs nothing but the files: values are told as JSON, byte strings as {"hex": …}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from nsync.auth.keys import SigningKey
from nsync.authority.charter import Place
from nsync.authority.documents import FORMAT as CHARTER_FORMAT
from nsync.clock import Stamp
from nsync.log import notices
from nsync.log.compaction import block_digest
from nsync.log.forks import prove
from nsync.log.lease import sign_head
from nsync.log.notices import Stand
from nsync.log.repair import BITMAP_BYTES
from nsync.log.segment import EMPTY, FORMAT, NO_HASH, Dep, Header, Segment, Tip, build_changeset, encode_header, leaf_of, root_of
from nsync.log.stored import BEGINNING, Head, Receipt
from nsync.namespace import codec
from nsync.namespace.ops import encode_op
from nsync.transport import notices as exchange
from nsync.transport import repair, session, wire
from nsync.transport.notices import Word
from nsync.transport.repair import Places
from nsync.transport.requests import authorization
from nsync.transport.roster import Roster
from tests.conformance.vocabulary import OP_ROWS, UNKNOWN_OP, make_keys, make_ops, plain, refused_ops
from tests.support.federation import AUTHOR, CHARTER, KEYS, ROOTS, charter_document

DIRECTORY = Path(__file__).parent / "vectors"

NOW_MS = 1_700_000_000_000


def told_header(header: Header) -> Any:
    """A header with its parts named."""
    deps = [{name: plain(part) for name, part in dep._asdict().items()} for dep in header.deps]
    return {**{name: plain(part) for name, part in header._asdict().items()}, "stamp": header.stamp._asdict(), "deps": deps}


def told_segment(name: str, author: str, segment: Segment) -> Any:
    """A segment, and what its receiver makes of it."""
    return {
        "name": name,
        "key": KEYS[author].public.hex(),
        "frame": segment.frame.hex(),
        "header_bytes": segment.header_bytes.hex(),
        "header": told_header(segment.header),
        "signature": segment.signature.hex(),
        "hash": segment.hash.hex(),
        "ops": [op.hex() for op in segment.ops],
    }


def sealed(author: str, /, ops: Sequence[bytes], key: Optional[SigningKey] = None, **changes: Any) -> Segment:
    """A segment of `author`, signed with its key or another, its header changed at will."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "federation": CHARTER.federation,
        "charter_version": CHARTER.version,
        "author": AUTHOR[author],
        "group": 0,
        "first": 1,
        "n": len(ops),
        "prev": NO_HASH,
        "stamp": Stamp(NOW_MS, 0),
        "deps": (),
        "root": root_of(ops),
        "commit": True,
    }
    header = Header(**{**fields, **changes})
    raw = encode_header(header)
    return Segment(header, raw, (key or KEYS[author]).sign("segment", raw), tuple(ops))


def first_of_cms() -> Segment:
    """A changeset of one segment."""
    ops = [encode_op(OP_ROWS["rse with its doors"])]
    only, *others = build_changeset(
        ops,
        federation=CHARTER.federation,
        charter_version=1,
        author=AUTHOR["cms"],
        tip=EMPTY,
        stamp=Stamp(NOW_MS - 1000, 0),
        deps=(),
        sign=KEYS["cms"].sign,
    )
    assert not others
    return only


def changeset() -> list[Segment]:
    """Two segments of atlas that are one changeset; it has seen the one of cms."""
    seen = first_of_cms()
    dep = Dep(seen.header.author, seen.header.last, seen.hash)
    ops = [encode_op(statements) for statements in OP_ROWS.values()]
    one = sealed("atlas", ops[:5], deps=(dep,), commit=False)
    two = sealed("atlas", [*ops[5:], UNKNOWN_OP], first=6, prev=one.hash, stamp=Stamp(NOW_MS, 1))
    return [one, two]


def make_segments() -> list[Any]:
    one, two = changeset()
    return [
        told_segment("a changeset of one segment", "cms", first_of_cms()),
        told_segment("the first segment of a changeset, with a dep", "atlas", one),
        told_segment("its second and last segment", "atlas", two),
        told_segment("the greatest numbers", "belle2", sealed("belle2", [UNKNOWN_OP], first=1 << 62, stamp=Stamp(1 << 48, 1 << 48))),
    ]


def make_charter() -> Any:
    return {
        "document": charter_document(),
        "format": CHARTER_FORMAT,
        "federation": CHARTER.federation.hex(),
        "roots": {name: key.public.hex() for name, key in ROOTS.items()},
        "authors": {i.name: {"key": i.key.hex(), "incarnation": i.incarnation.hex(), "author": i.author.hex()} for i in CHARTER.instances},
    }


def make_request() -> Any:
    method, path, body, nonce = "POST", "/nsync/v1/pull", b"body", bytes(range(16))
    value = authorization(KEYS["atlas"], CHARTER.federation, AUTHOR["atlas"], AUTHOR["cms"], method, path, body, NOW_MS, nonce)
    return {"method": method, "path": path, "body": body.hex(), "nonce": nonce.hex(), "now_ms": NOW_MS, "authorization": value}


def make_messages() -> Any:
    """Whom each message is for, its bytes, and what they say; of heads also the digest."""
    atlas, cms = sorted((AUTHOR["atlas"], AUTHOR["cms"]))
    heads = [Head(atlas, 300, b"a" * 16), Head(cms, 7, b"b" * 16), Head(cms, 9, b"c" * 16)]
    have = {atlas: [], cms: [Place(9, b"c" * 16), Place(8, b"d" * 16), Place(7, b"b" * 16), BEGINNING]}
    digest = session.digest(heads)
    pull = [3, [[author, sorted(places)] for author, places in have.items()]]
    roster, since, reply = Roster(CHARTER), session.digest([]), wire.HelloReply(3, heads)
    one = wire.HelloReply(3, heads[:1], True)
    numbered = [[roster.authors.index(head.author), *head[1:]] for head in heads]
    return [
        _message("hello", wire.encode_hello(digest, roster.digest), [3, 3, digest, roster.digest, None], name="the first one"),
        _message("hello", wire.encode_hello(digest, roster.digest, since), [3, 3, digest, roster.digest, since], name="later"),
        _message("hello reply", wire.encode_hello_reply(wire.HelloReply(3, None)), [3, None, False], name="the same heads"),
        _message("hello reply", wire.encode_hello_reply(reply), [3, heads, False], name="other heads, and a fork", digest=digest.hex()),
        _message("hello reply", wire.encode_hello_reply(reply, roster), [3, numbered, False], name="the same to one with the same charter"),
        _message(
            "hello reply",
            wire.encode_hello_reply(one, roster),
            [3, numbered[:1], True],
            name="one has changed",
        ),
        _message(
            "hello reply", wire.encode_hello_reply(wire.HelloReply(3, [])), [3, [], False], name="nothing", digest=session.digest([]).hex()
        ),
        _message("tell", wire.encode_tell(heads[:1]), [3, heads[:1]], name="a new head"),
        _message("tell reply", wire.encode_tell_reply(True), True, name="the peer will ask"),
        _message("pull", wire.encode_have(have), pull, name="all of one log, and what follows some places of another"),
        _message("receipt", wire.encode_receipt(Receipt(3, ())), [3, []], name="all stored"),
        _message("receipt", wire.encode_receipt(Receipt(0, ("a reason",))), [0, ["a reason"]], name="a refusal"),
    ]


def make_notices() -> list[Any]:
    """Notices by themselves, with what they say and their ids; and what peers say to each other about them."""
    one, other = (sealed("atlas", [encode_op(OP_ROWS[name])]) for name in ("dataset", "rse with its doors"))
    proof = prove(one.header_bytes, one.signature, other.header_bytes, other.signature)
    head = sign_head(CHARTER.federation, AUTHOR["cms"], Place(9, b"c" * 16), NOW_MS, KEYS["cms"].sign)
    fork_id, head_id = notices.id_of_fork(AUTHOR["atlas"], 1), notices.id_of_head(head)
    fork, said = notices.fork_notice(codec.encode(tuple(proof))), notices.head_notice(head)
    mine = Stand(7, tuple(sorted((fork_id, head_id))))
    words = {
        "a question": Word(mine, ()),
        "the answer of one who has nothing": Word(Stand(0, ()), ()),
        "notices for one who lacks them": Word(mine, (fork, said)),
    }
    return [
        {"name": "a fork", "kind": fork.kind, "bytes": fork.raw.hex(), "says": plain(tuple(proof)), "id": fork_id.hex()},
        {"name": "a head", "kind": said.kind, "bytes": said.raw.hex(), "says": plain(tuple(head)), "id": head_id.hex()},
        *({"name": name, "bytes": exchange.encode(word).hex(), "says": plain(word)} for name, word in words.items()),
    ]


def make_repair() -> list[Any]:
    """Questions, and what is in the zstd stream of their answers: of a block of which ops 1, 3 and the last are live, and of another."""
    some, none = bytearray(BITMAP_BYTES), bytes(BITMAP_BYTES)
    some[0], some[-1] = 0b101, 0b1000_0000
    ops = (encode_op(OP_ROWS["dataset"]), UNKNOWN_OP)
    places = Places(7, (0, 2, 4095, 4096, 1 << 20))
    questions = {"blocks": (repair.encode_first(7, 0), (7, 0)), "bitmaps and ops": (repair.encode_places(places), places)}
    digests = (block_digest([(1, leaf_of(ops[0]))]), block_digest([]))
    answers = {
        "blocks": (b"".join(digest[: repair.SHORT_BYTES] for digest in digests), [digest[: repair.SHORT_BYTES] for digest in digests]),
        "bitmaps": (bytes(some) + none, [bytes(some), none]),
        "ops": (b"".join(len(op).to_bytes(4, "big") + op for op in ops), ops),
    }
    return [
        *({"name": f"question: {kind}", "bytes": raw.hex(), "says": plain(says)} for kind, (raw, says) in questions.items()),
        *({"name": f"answer: {kind}", "inflated": raw.hex(), "says": plain(says)} for kind, (raw, says) in answers.items()),
    ]


def _message(kind: str, raw: bytes, says: Any, name: str = "", **more: str) -> Any:
    return {"name": f"{kind}: {name}" if name else kind, "kind": kind, "bytes": raw.hex(), "says": plain(says), **more}


def _frame(segment: Segment, **changes: Any) -> bytes:
    parts = {"header": segment.header_bytes, "signature": segment.signature, "ops": segment.ops, **changes}
    return codec.encode(tuple(parts.values()))


def refused_segments() -> dict[str, tuple[bytes, str]]:
    """Frames that must be refused before any signature is looked at, with the start of the text."""
    good = sealed("atlas", [encode_op(OP_ROWS["dataset"])])
    dep = Dep(AUTHOR["cms"], 1, bytes(16))
    headers: dict[str, tuple[Mapping[str, Any], str]] = {
        "format 2": ({"format": 2}, "a segment has format 2; this nsync reads format 1"),
        "a federation id of 15 bytes": ({"federation": bytes(15)}, "a segment has an id or hash that is not 16 bytes"),
        "charter version 0": ({"charter_version": 0}, "a segment has no charter version"),
        "group 1": ({"group": 1}, "a segment belongs to a log group; this nsync knows group 0 only"),
        "seq 0": ({"first": 0}, "a segment begins at no sequence number"),
        "seq beyond the greatest": ({"first": (1 << 62) + 1}, "a segment begins at no sequence number"),
        "no ops announced": ({"n": 0}, "a segment announces no op or more than 4096"),
        "4097 ops announced": ({"n": 4097}, "a segment announces no op or more than 4096"),
        "a negative stamp": ({"stamp": Stamp(-1, 0)}, "a segment has no stamp"),
        "a dep twice": ({"deps": (dep, dep)}, "a segment has deps that are unsorted or named twice"),
        "deps unsorted": (
            {"deps": tuple(sorted((dep, Dep(AUTHOR["belle2"], 1, bytes(16))), reverse=True))},
            "a segment has deps that are unsorted",
        ),
        "a dep at seq 0": ({"deps": (dep._replace(seq=0),)}, "a segment has malformed deps"),
        "commit as a number": ({"commit": 1}, "a segment has no commit flag"),
        "another root": ({"root": bytes(16)}, f"segment {AUTHOR['atlas'].hex()[:12]} 1-1: its ops are not those that its header signs"),
    }
    frames = {name: (sealed("atlas", good.ops, **changes).frame, text) for name, (changes, text) in headers.items()}
    return {
        **frames,
        "no header": (codec.encode((None, good.signature, good.ops)), "a segment is not (header, signature, ops)"),
        "a header that is empty": (_frame(good, header=b""), "segment header is not canonical msgpack"),
        "a signature of 63 bytes": (_frame(good, signature=good.signature[:63]), "a segment has no signature of 64 bytes"),
        "ops missing": (_frame(good, ops=()), f"segment {AUTHOR['atlas'].hex()[:12]} 1-1: its ops are not those"),
        "an op that is text": (_frame(good, ops=("op",)), "a segment has an op that is no byte string of at most 65536"),
        "a fourth part": (codec.encode((good.header_bytes, good.signature, good.ops, None)), "a segment is not (header, signature, ops)"),
        "cut off": (good.frame[:-1], "segment is not canonical msgpack"),
        "bytes after the end": (good.frame + b"\x00", "segment is not canonical msgpack"),
    }


def make_refused() -> list[Any]:
    rows = [("op", refused_ops()), ("segment", refused_segments())]
    return [{"kind": kind, "name": name, "bytes": raw.hex(), "error": text} for kind, found in rows for name, (raw, text) in found.items()]


FILES = {
    "keys": make_keys,
    "ops": make_ops,
    "segments": make_segments,
    "charter": make_charter,
    "messages": make_messages,
    "notices": make_notices,
    "repair": make_repair,
    "request": make_request,
    "refused": make_refused,
}


def tip_after(segment: Segment) -> Tip:
    """The end of a log whose last segment is `segment`."""
    return Tip(segment.header.last, segment.hash, segment.header.stamp, 0 if segment.header.commit else 1)


if __name__ == "__main__":
    for file_name, made in FILES.items():
        (DIRECTORY / f"{file_name}.json").write_text(json.dumps(made(), indent=1, ensure_ascii=True) + "\n", encoding="ascii")
