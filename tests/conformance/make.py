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
from nsync.authority.charter import FORMAT as CHARTER_FORMAT
from nsync.clock import Stamp
from nsync.log.segment import EMPTY, FORMAT, NO_HASH, Dep, Header, Segment, Tip, build_changeset, encode_header, root_of
from nsync.namespace import codec, keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Key, Protocol, Replica, Rse, Scope, key_bytes, to_wire
from nsync.namespace.ops import Assert, Retract, Statement, encode_op
from nsync.transport.requests import authorization
from tests.support.federation import AUTHOR, CHARTER, KEYS, ROOTS, charter_document

DIRECTORY = Path(__file__).parent / "vectors"

NOW_MS = 1_700_000_000_000
FILE, DATASET, CONTAINER = Did("atlas", "f1"), Did("atlas", "d1"), Did("atlas.shared", "größe/ü-1")
DISK = Rse("cms", "DISK")
PROTOCOL = Protocol("root", "storage.example.org", 1094, "//data/", "rucio.rse.protocols.xrootd.Default", 1, None, 0)

KEY_ROWS: dict[str, Key] = {
    "scope": Scope("atlas"),
    "did": DATASET,
    "did of 33 bytes, beyond ASCII": Did("atlas", "ü" * 16 + "x"),
    "attachment": Attachment(DATASET, FILE),
    "rse": DISK,
    "replica": Replica(FILE, DISK),
    "closed": Attribute(DATASET, keys.CLOSED),
    "opendata": Attribute(CONTAINER, keys.OPENDATA),
    "doi": Attribute(DATASET, keys.DOI),
    "protocols": Attribute(DISK, keys.PROTOCOLS),
    "attributes": Attribute(DISK, keys.ATTRIBUTES),
    "a field of a replica": Attribute(Replica(FILE, DISK), "state"),
    "a field of an attachment": Attribute(Attachment(DATASET, FILE), "note"),
}

OP_ROWS: dict[str, tuple[Statement, ...]] = {
    "scope": (Assert(Scope("atlas"), True),),
    "file, first parent, first replica": (
        Assert(FILE, Identity(keys.FILE, 10, bytes.fromhex("00000001"), bytes(range(16)))),
        Assert(Attachment(DATASET, FILE), True),
        Assert(Replica(FILE, DISK), "atlas/aa/bb/f1"),
    ),
    "file without checksums": (Assert(FILE, Identity(keys.FILE, 0)),),
    "file of the greatest size": (Assert(FILE, Identity(keys.FILE, keys.BYTES_MAX)),),
    "dataset": (Assert(DATASET, Identity(keys.DATASET)),),
    "container": (Assert(CONTAINER, Identity(keys.CONTAINER)),),
    "close": (Assert(Attribute(DATASET, keys.CLOSED), True),),
    "open": (Assert(Attribute(DATASET, keys.CLOSED), False),),
    "publish, with a DOI": (
        Assert(Attribute(DATASET, keys.OPENDATA), keys.PUBLIC),
        Assert(Attribute(DATASET, keys.DOI), "10.5072/ATLAS.1"),
    ),
    "suspend": (Assert(Attribute(DATASET, keys.OPENDATA), keys.SUSPENDED),),
    "rse with its doors": (
        Assert(DISK, True),
        Assert(Attribute(DISK, keys.PROTOCOLS), (PROTOCOL,)),
        Assert(Attribute(DISK, keys.ATTRIBUTES), (("OpenData", "True"), ("tier", "1"))),
    ),
    "a field that this version does not know": (Assert(Attribute(DATASET, "later"), (None, True, -1, 1 << 40, "x", b"y", ())),),
    "retract an attachment": (Retract(Attachment(DATASET, FILE)),),
    "retract an attribute": (Retract(Attribute(DATASET, keys.DOI)),),
    "retract everything of a file": (Retract(FILE), Retract(Replica(FILE, DISK))),
}

UNKNOWN_OP = codec.encode((2, "later", (1, 2, 3)))


def plain(value: Any) -> Any:
    """`value` as JSON tells it."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def told_key(key: Key) -> Any:
    """A key with its parts named."""
    if isinstance(key, Attribute):
        return {"attribute": key.field, "of": told_key(key.fact)}
    if isinstance(key, Attachment):
        return {"attachment": {"parent": told_key(key.parent)["did"], "child": told_key(key.child)["did"]}}
    if isinstance(key, Replica):
        return {"replica": {"did": told_key(key.did)["did"], "rse": told_key(key.rse)["rse"]}}
    if isinstance(key, Did):
        return {"did": {"scope": key.scope, "name": key.name}}
    return {"rse": {"instance": key.instance, "rse": key.rse}} if isinstance(key, Rse) else {"scope": key.scope}


def told_statement(statement: Statement) -> Any:
    """A statement with its parts named."""
    if isinstance(statement, Retract):
        return {"retract": told_key(statement.key)}
    return {"assert": told_key(statement.key), "value": plain(statement.value)}


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


def make_keys() -> list[Any]:
    return [{"name": name, "bytes": key_bytes(key).hex(), "key": told_key(key)} for name, key in KEY_ROWS.items()]


def make_ops() -> list[Any]:
    rows = [(name, encode_op(said), said) for name, said in OP_ROWS.items()]
    rows.append(("an op of a kind that this version does not know", UNKNOWN_OP, ()))
    return [{"name": name, "bytes": raw.hex(), "statements": [told_statement(s) for s in said]} for name, raw, said in rows]


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


def _wire(statement: Statement) -> Any:
    key = to_wire(statement.key)
    return (key, statement.value) if isinstance(statement, Assert) else (key,)


def _op(*statements: Any) -> bytes:
    return codec.encode((1, *(_wire(s) if isinstance(s, (Assert, Retract)) else s for s in statements)))


def _doors(**changes: Any) -> bytes:
    return _op(Assert(Attribute(DISK, keys.PROTOCOLS), (tuple(PROTOCOL._replace(**changes)),)))


def _frame(segment: Segment, **changes: Any) -> bytes:
    parts = {"header": segment.header_bytes, "signature": segment.signature, "ops": segment.ops, **changes}
    return codec.encode(tuple(parts.values()))


def refused_ops() -> dict[str, tuple[bytes, str]]:
    """Ops that must be refused, with the start of the text."""
    good = encode_op(OP_ROWS["dataset"])
    claim = Assert(DATASET, tuple(Identity(keys.DATASET)))
    return {
        "nothing": (b"", "op is not canonical msgpack"),
        "cut off": (good[:-1], "op is not canonical msgpack"),
        "bytes after the end": (good + b"\xc0", "op is not canonical msgpack"),
        "a length in two bytes": (b"\xdc\x00\x02" + good[1:], "op is msgpack, but not in its canonical form"),
        "no array": (b"\x01", "an op is an array that begins with its kind"),
        "an empty array": (b"\x90", "an op is an array that begins with its kind"),
        "kind 0": (codec.encode((0,)), "an op is an array that begins with its kind"),
        "kind true": (codec.encode((True, ())), "an op is an array that begins with its kind"),
        "no statement": (codec.encode((1,)), "an op has 0 statements; 1 to 64 are allowed"),
        "65 statements": (_op(*(Retract(Did("atlas", f"d{i}")) for i in range(65))), "an op has 65 statements; 1 to 64 are allowed"),
        "two of one key": (_op(claim, Retract(DATASET)), "an op says two things about one key"),
        "a statement of three parts": (_op(((1, "atlas"), True, True)), "a statement is (key, value) or (key,)"),
        "an unknown kind of key": (_op(((4, "atlas", "a", "atlas", "b"), True)), "(4, 'atlas', 'a', 'atlas', 'b') is no key"),
        "an attribute of an attribute": (_op(((7, "x", 7, "y", 1, "atlas"), True)), "(7, 'y', 1, 'atlas') is no key"),
        "a key with a name too many": (_op(((1, "atlas", "x"), True)), "(1, 'atlas', 'x') is no key: it needs 1 names"),
        "a name that is bytes": (_op(((1, b"atlas"), True)), "b'atlas' is no name: it needs 1 to 255 characters"),
        "an empty name": (_op(Retract(Did("atlas", ""))), "'' is no name: it needs 1 to 1024 characters"),
        "a scope of 256 characters": (_op(Retract(Scope("s" * 256))), "'" + "s" * 116),
        "a line break in a name": (_op(Retract(Did("atlas", "a\nb"))), "name 'a\\nb' has a control character"),
        "a line separator in a name": (_op(Retract(Did("atlas", "a\u2028b"))), "name 'a\\u2028b' has a control character"),
        "a scope that is false": (_op(Assert(Scope("atlas"), False)), "False is not the value of Scope, which is true"),
        "a dataset with a size": (_op(Assert(DATASET, ("D", 1, None, None))), "('D', 1, None, None) is not an identity: a collection"),
        "a file without a size": (
            _op(Assert(FILE, ("F", None, None, None))),
            "('F', None, None, None) is not an identity: a file has a size",
        ),
        "a file of negative size": (
            _op(Assert(FILE, ("F", -1, None, None))),
            "('F', -1, None, None) is not an identity: a file has a size",
        ),
        "a file beyond the greatest size": (_op(Assert(FILE, ("F", keys.BYTES_MAX + 1, None, None))), f"('F', {keys.BYTES_MAX + 1}, None"),
        "adler32 as text": (_op(Assert(FILE, ("F", 1, "00000001", None))), "('F', 1, '00000001', None) is not an identity: adler32"),
        "md5 of 15 bytes": (_op(Assert(FILE, ("F", 1, None, bytes(15)))), "('F', 1, None, b'"),
        "closed by a number": (_op(Assert(Attribute(DATASET, keys.CLOSED), 1)), "1 is not true (closed) or false (open)"),
        "a draft": (_op(Assert(Attribute(DATASET, keys.OPENDATA), "DRAFT")), "'DRAFT' is not PUBLIC or SUSPENDED"),
        "a DOI that is none": (_op(Assert(Attribute(DATASET, keys.DOI), "doi:10.5072/X")), "'doi:10.5072/X' is not a DOI"),
        "a path with a control character": (_op(Assert(Replica(FILE, DISK), "a\x00b")), "path 'a\\x00b' has a control character"),
        "port 65536": (_doors(port=65536), "('root', 'storage.example.org', 65536"),
        "a door without implementation": (_doors(impl=""), "'' is no protocol field"),
        "unsorted attributes": (
            _op(Assert(Attribute(DISK, keys.ATTRIBUTES), (("b", "1"), ("a", "1")))),
            "(('b', '1'), ('a', '1')) is not sorted",
        ),
    }


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
        "a dep twice": ({"deps": (dep, dep)}, "a segment has deps that are unsorted or name an author twice"),
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
    "request": make_request,
    "refused": make_refused,
}


def tip_after(segment: Segment) -> Tip:
    """The end of a log whose last segment is `segment`."""
    return Tip(segment.header.last, segment.hash, segment.header.stamp, 0 if segment.header.commit else 1)


if __name__ == "__main__":
    for file_name, made in FILES.items():
        (DIRECTORY / f"{file_name}.json").write_text(json.dumps(made(), indent=1, ensure_ascii=True) + "\n", encoding="ascii")
