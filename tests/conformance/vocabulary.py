"""The vectors of keys and ops: what each says, its bytes, and what must be refused.

`OP_ROWS` is what the vectors of segments are made of, so it stays as it is; what came into the vocabulary later is in `LATER_ROWS`.
"""

from __future__ import annotations

from typing import Any

from nsync.namespace import codec, fields, keys
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Identity, Key, Protocol, Replica, Rse, Scope, key_bytes, to_wire
from nsync.namespace.ops import (
    ACKNOWLEDGE,
    VERBS,
    Assert,
    Grant,
    Retract,
    Revoke,
    Said,
    Statement,
    encode_grant,
    encode_op,
    encode_revoke,
)

FILE, DATASET, CONTAINER = Did("atlas", "f1"), Did("atlas", "d1"), Did("atlas.shared", "größe/ü-1")
ARCHIVE = Did("atlas", "a1.zip")
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
    "constituent": Constituent(ARCHIVE, FILE),
    "attachable": Attribute(Scope("atlas"), fields.ATTACHABLE),
    "record": Attribute(DATASET, fields.RECORD),
    "opendata_meta": Attribute(DATASET, fields.OPENDATA_META),
    "monotonic": Attribute(DATASET, fields.MONOTONIC),
    "hidden": Attribute(DATASET, fields.HIDDEN),
    "obsolete": Attribute(DATASET, fields.OBSOLETE),
    **{name: Attribute(FILE, name) for name in fields.METADATA},
    "a key of JSON metadata": Attribute(FILE, fields.JSON_PREFIX + "größe"),
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

METADATA: dict[str, Any] = {
    "events": 1000,
    "guid": bytes(range(16)),
    "project": "data18_13TeV",
    "datatype": "DAOD_PHYS",
    "run_number": 348885,
    "stream_name": "physics_Main",
    "prod_step": "merge",
    "version": "r13286_p4910",
    "campaign": "Run 2",
    "task_id": 31415926,
    "panda_id": 1 << 40,
    "lumiblocknr": -1,
    "provenance": "GO",
    "phys_group": "phys-higgs",
    "transient": False,
}
JSON_TEXT = '{"a":[1,-2.5,1e+16,true,null],"größe":"\\n\\u001f \\"x\\"\x85","z":{}}'
GRANT = Grant("cms", "atlas.shared", "2018/", ("attach", "create", "replica"), 1_800_000_000_000)

LATER_ROWS: dict[str, tuple[Said, ...]] = {
    "constituents of an archive": (Assert(Constituent(ARCHIVE, FILE), True), Retract(Constituent(ARCHIVE, CONTAINER))),
    "a scope that nothing is attached to from elsewhere": (Assert(Attribute(Scope("atlas"), fields.ATTACHABLE), False),),
    "flags": tuple(Assert(Attribute(DATASET, name), True) for name in (fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)),
    "record and document of open data": (
        Assert(Attribute(DATASET, fields.RECORD), 80020),
        Assert(Attribute(DATASET, fields.OPENDATA_META), '{"title":"größe"}'),
    ),
    "metadata in columns": tuple(Assert(Attribute(FILE, name), value) for name, value in METADATA.items()),
    "metadata in JSON": (
        Assert(Attribute(FILE, "json.detector"), JSON_TEXT),
        Assert(Attribute(FILE, "json."), "null"),
        Retract(Attribute(FILE, "json.was")),
    ),
    **{f"a replica that is {state}": (Assert(Attribute(Replica(FILE, DISK), fields.STATE), state),) for state in fields.STATES},
    "a file with all that may come with it": (
        Assert(FILE, Identity(keys.FILE, 10, bytes.fromhex("00000001"))),
        Assert(Attachment(DATASET, FILE), True),
        Assert(Constituent(ARCHIVE, FILE), True),
        Assert(Replica(FILE, DISK), "atlas/aa/bb/f1"),
        Assert(Attribute(FILE, "events"), 0),
        Assert(Attribute(FILE, "json.x"), '"y"'),
    ),
    "grant": (GRANT,),
    "grant of everything on a scope, without end": (Grant("cms", "atlas.shared", "", VERBS, None),),
    "revoke": (Revoke(bytes(range(16)), 1),),
    "acknowledge": (),
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
    if isinstance(key, Constituent):
        return {"constituent": {"archive": told_key(key.archive)["did"], "child": told_key(key.child)["did"]}}
    if isinstance(key, Replica):
        return {"replica": {"did": told_key(key.did)["did"], "rse": told_key(key.rse)["rse"]}}
    if isinstance(key, Did):
        return {"did": {"scope": key.scope, "name": key.name}}
    return {"rse": {"instance": key.instance, "rse": key.rse}} if isinstance(key, Rse) else {"scope": key.scope}


def told(said: Said) -> Any:
    """What an op says, with its parts named."""
    if isinstance(said, (Grant, Revoke)):
        return {type(said).__name__.lower(): plain(said._asdict())}
    if isinstance(said, Retract):
        return {"retract": told_key(said.key)}
    return {"assert": told_key(said.key), "value": plain(said.value)}


def encoded(said: tuple[Said, ...]) -> bytes:
    """The op that says this; an acknowledgement says nothing."""
    if not said:
        return ACKNOWLEDGE
    if isinstance(said[0], Grant):
        return encode_grant(said[0])
    return encode_revoke(said[0]) if isinstance(said[0], Revoke) else encode_op(said)  # type: ignore[arg-type]


def make_keys() -> list[Any]:
    return [{"name": name, "bytes": key_bytes(key).hex(), "key": told_key(key)} for name, key in KEY_ROWS.items()]


def make_ops() -> list[Any]:
    rows: list[tuple[str, bytes, tuple[Said, ...]]] = [(name, encode_op(said), said) for name, said in OP_ROWS.items()]
    rows.append(("an op of a kind that this version does not know", UNKNOWN_OP, ()))
    rows += [(name, encoded(said), said) for name, said in LATER_ROWS.items()]
    return [{"name": name, "bytes": raw.hex(), "statements": [told(s) for s in said]} for name, raw, said in rows]


def _wire(statement: Statement) -> Any:
    key = to_wire(statement.key)
    return (key, statement.value) if isinstance(statement, Assert) else (key,)


def _op(*statements: Any) -> bytes:
    return codec.encode((1, *(_wire(s) if isinstance(s, (Assert, Retract)) else s for s in statements)))


def _doors(**changes: Any) -> bytes:
    return _op(Assert(Attribute(DISK, keys.PROTOCOLS), (tuple(PROTOCOL._replace(**changes)),)))


def _about(fact: Any, field: str, value: Any) -> bytes:
    return _op(Assert(Attribute(fact, field), value))


def _grant(**changes: Any) -> bytes:
    return codec.encode((3, *GRANT._replace(**changes)))


REFUSED_JSON = {
    "that is none": ("{", "'{' is no JSON that can be shared"),
    "that is empty": ("", "'' is no JSON that can be shared"),
    "with white space": ('{"a": 1}', "'{\"a\": 1}' is JSON, but not canonical"),
    "with members unsorted": ('{"b":1,"a":1}', '\'{"b":1,"a":1}\' is JSON, but not canonical'),
    "with a member twice": ('{"a":1,"a":1}', '\'{"a":1,"a":1}\' is JSON, but not canonical'),
    "with a number of too many digits": ("1.50", "'1.50' is JSON, but not canonical"),
    "with a needless escape": ('"\\u0041"', "'\"\\\\u0041\"' is JSON, but not canonical"),
    "with U+0000": ('"\\u0000"', "'\"\\\\u0000\"' is JSON, but not canonical"),
    "with half a surrogate": ('"\\ud800"', "'\"\\\\ud800\"' is JSON, but not canonical"),
    "with a number beyond 64 bits": (str(1 << 63), f"'{1 << 63}' is no JSON that can be shared: a whole number"),
    "with a number beyond a double": ("1e999", "'1e999' is no JSON that can be shared"),
    "that is not a number": ("NaN", "'NaN' is no JSON that can be shared"),
    "33 deep": ("[" * 33 + "]" * 33, "'[[[["),
    "of 60 001 bytes": ('"' + "x" * 59_999 + '"', "'\"xxx"),
}


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
        "an unknown kind of key": (_op(((8, "atlas", "a", "atlas", "b"), True)), "(8, 'atlas', 'a', 'atlas', 'b') is no key"),
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
        "a constituent that is false": (_op(Assert(Constituent(ARCHIVE, FILE), False)), "False is not the value of Constituent"),
        "a flag that is a number": (_about(DATASET, fields.HIDDEN, 1), "1 is not true or false"),
        "attachable by a text": (_about(Scope("atlas"), fields.ATTACHABLE, "no"), "'no' is not true or false"),
        "a negative record": (_about(DATASET, fields.RECORD, -1), "-1 is not a number from 0 to"),
        "a document that is no object": (_about(DATASET, fields.OPENDATA_META, "[]"), "'[]' is not a JSON object"),
        "a document that is no text": (_about(DATASET, fields.OPENDATA_META, b"{}"), "bytes is no JSON text"),
        "a replica that is being copied": (_about(Replica(FILE, DISK), fields.STATE, "COPYING"), "'COPYING' is not AVAILABLE or BAD or"),
        "a guid in text": (_about(FILE, "guid", "0" * 32), "'00000000000000000000000000000000' is not 16 bytes"),
        "more events than there can be": (_about(FILE, "events", fields.EVENTS_MAX + 1), f"{fields.EVENTS_MAX + 1} is not a number"),
        "a run number in text": (_about(FILE, "run_number", "348885"), "'348885' is not a number"),
        "an empty project": (_about(FILE, "project", ""), "'' is no text: it needs 1 to 255 characters"),
        "a project of 256 characters": (_about(FILE, "project", "p" * 256), "'" + "p" * 116),
        **{f"JSON {name}": (_about(FILE, "json.x", text), start) for name, (text, start) in REFUSED_JSON.items()},
        "nil for a field that this version does not know": (_about(DATASET, "later", None), "None is not a value of field 'later'"),
        "nil for such a field of an RSE": (_about(DISK, "later", None), "None is not a value of field 'later'"),
        "an array of 257 values": (_about(FILE, "later", (None,) * 257), "op is not canonical msgpack"),
        "a grant without verbs": (_grant(verbs=()), "() is not a sorted array of verbs"),
        "a grant of an unknown verb": (_grant(verbs=("own",)), "('own',) is not a sorted array of verbs"),
        "a grant with a verb twice": (_grant(verbs=("meta", "meta")), "('meta', 'meta') is not a sorted array of verbs"),
        "a grant with unsorted verbs": (_grant(verbs=("query", "meta")), "('query', 'meta') is not a sorted array of verbs"),
        "a grant to nobody": (_grant(to=""), "'' is no instance"),
        "a grant on no scope": (_grant(scope=""), "'' is no scope"),
        "a grant on a name with a control character": (_grant(prefix="a\n"), "prefix 'a\\n' has a control character"),
        "a grant that ends before 1970": (_grant(not_after_ms=-1), "-1 is not an end of a grant"),
        "a grant cut short": (
            codec.encode((3, *GRANT[:4])),
            "(3, 'cms', 'atlas.shared', '2018/', ('attach', 'create', 'replica')) is not a grant",
        ),
        "a revocation of seq 0": (codec.encode((4, bytes(16), 0)), "0 is not a sequence number"),
        "a revocation of an author id of 15 bytes": (codec.encode((4, bytes(15), 1)), "b'"),
        "a revocation of two": (codec.encode((4, bytes(16), 1, 2)), "(4, b'"),
    }
