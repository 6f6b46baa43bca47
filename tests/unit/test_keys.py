"""Keys and the values that may be said about them (R3.1)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nsync.errors import RejectedSegment
from nsync.namespace import fields, keys
from nsync.namespace.keys import (
    Attachment,
    Attribute,
    Constituent,
    Did,
    Identity,
    Key,
    Protocol,
    Replica,
    Rse,
    Scope,
    anchor_of,
    check_value,
    ends_of,
    fact_of,
    from_key_bytes,
    from_wire,
    key_bytes,
    key_of,
    scope_of,
    to_wire,
)
from tests.conformance.vocabulary import DATASET, DISK, FILE, KEY_ROWS, PROTOCOL

CLOSED, OPEN_DATA, DOI = (Attribute(DATASET, field) for field in (keys.CLOSED, keys.OPENDATA, keys.DOI))
PROTOCOLS, ATTRIBUTES = (Attribute(DISK, field) for field in (keys.PROTOCOLS, keys.ATTRIBUTES))
REPLICA = Replica(FILE, DISK)


@pytest.mark.parametrize("key", KEY_ROWS.values(), ids=KEY_ROWS.keys())
def test_a_key_comes_back_from_its_bytes(key: Key) -> None:
    assert from_key_bytes(key_bytes(key)) == key == from_wire(to_wire(key))
    assert str(key) and str(fact_of(key)) in str(key)


def test_keys_of_different_kinds_are_never_equal() -> None:
    same = [Did("cms", "DISK"), Rse("cms", "DISK")]
    assert len({*same}) == 2 and len({key_bytes(key) for key in KEY_ROWS.values()}) == len(KEY_ROWS)


@pytest.mark.parametrize(
    ("key", "scope"),
    [
        (Scope("a"), "a"),
        (Did("a", "x"), "a"),
        (Attachment(Did("a", "x"), Did("b", "y")), "a"),  # the parent's: R5.5
        (Constituent(Did("a", "x"), Did("b", "y")), "a"),  # the archive's, for the same reason
        (Replica(Did("a", "x"), Rse("cms", "DISK")), "a"),
        (Attribute(Replica(Did("a", "x"), Rse("cms", "DISK")), fields.STATE), "a"),
        (Attribute(Scope("a"), fields.ATTACHABLE), "a"),
        (Attribute(Did("a", "x"), keys.CLOSED), "a"),
        (Rse("cms", "DISK"), None),
        (Attribute(Rse("cms", "DISK"), keys.PROTOCOLS), None),
    ],
)
def test_whose_scope_decides(key: Key, scope: Any) -> None:
    assert scope_of(key) == scope_of(to_wire(key)) == scope


DID, OTHER, RSE = Did("a", "x"), Did("b", "y"), Rse("cms", "DISK")


@pytest.mark.parametrize(
    ("key", "anchor"),
    [
        (Scope("a"), Scope("a")),
        (DID, DID),
        (Attachment(DID, OTHER), OTHER),
        (Constituent(DID, OTHER), OTHER),
        (RSE, RSE),
        (Replica(DID, RSE), DID),
        *((Attribute(fact, "x"), anchor_of(fact)) for fact in (Scope("a"), DID, Attachment(DID, OTHER), RSE, Replica(DID, RSE))),
    ],
)
def test_statements_are_indexed_under_one_node(key: Key, anchor: Any) -> None:
    for found in (anchor_of(key), anchor_of(to_wire(key))):
        assert found == anchor and type(found) is type(anchor)


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        (Attachment(DID, OTHER), (DID, OTHER)),
        (Constituent(DID, OTHER), (DID, OTHER)),
        (Replica(DID, RSE), (DID, RSE)),
        (Attribute(Replica(DID, RSE), fields.STATE), ()),
        (DID, ()),
    ],
)
def test_what_a_fact_hangs_on(key: Key, ends: tuple[Any, ...]) -> None:
    assert ends_of(key) == ends


@pytest.mark.parametrize("key", KEY_ROWS.values(), ids=KEY_ROWS.keys())
def test_a_key_is_a_value_among_others(key: Key) -> None:
    assert hash(key) == hash(to_wire(key)) and key == to_wire(key) and type(to_wire(key)) is tuple
    for again in (copy.deepcopy(key), pickle.loads(pickle.dumps(key)), key_of(to_wire(key))):
        assert again == key and type(again) is type(key)
    assert repr(key).startswith(type(key).__name__)
    with pytest.raises(AttributeError):
        key.scope = "other"  # type: ignore[union-attr]


def test_keys_are_ordered_by_kind_and_parts() -> None:
    keys_in_order = [
        Scope("b"),
        DID,
        OTHER,
        Attachment(DID, OTHER),
        Attachment(OTHER, DID),
        Constituent(DID, OTHER),
        RSE,
        Replica(DID, RSE),
    ]
    assert sorted(reversed(keys_in_order)) == keys_in_order


WIRE = {
    "no tuple": (["x"], "is no key"),
    "empty": ((), "is no key"),
    "unknown tag": ((8, "a", "b", "c", "d"), "is no key"),
    "tag true": ((True, "a"), "is no key"),
    "tag as text": (("1", "a"), "is no key"),
    "a name too few": ((2, "a"), "it needs 2 names"),
    "a name too many": ((2, "a", "b", "c"), "it needs 2 names"),
    "attribute of nothing": ((7, "closed"), "is no key"),
    "attribute of an attribute": ((7, "x", 7, "closed", 2, "a", "b"), "is no key"),
    "field of 261 characters": ((7, "f" * 261, 1, "a"), "is no field"),
    "empty field": ((7, "", 1, "a"), "is no field"),
    "scope of 256 characters": ((1, "s" * 256), "is no name"),
    "name of 1025 characters": ((2, "a", "n" * 1025), "is no name"),
    "null": ((1, None), "is no name"),
    **{f"U+{ord(c):04X}": ((2, "a", f"x{c}y"), "has a control character") for c in "\x00\t\n\r\x1f\x7f\x80\x85\x9f\u2028\u2029"},
}


@pytest.mark.parametrize(("wire", "text"), WIRE.values(), ids=WIRE.keys())
def test_what_is_no_key_is_refused(wire: Any, text: str) -> None:
    with pytest.raises(RejectedSegment, match=text) as caught:
        from_wire(wire)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


FLAGS = (fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)
TEXTS = ("project", "datatype", "stream_name", "prod_step", "version", "campaign", "provenance", "phys_group")
NUMBERS = ("run_number", "task_id", "panda_id", "lumiblocknr")

GOOD: list[tuple[Key, Any]] = [
    (Scope("a"), True),
    (Attachment(DATASET, FILE), True),
    (DISK, True),
    (DATASET, ("D", None, None, None)),
    (DATASET, ("C", None, None, None)),
    (FILE, ("F", 0, None, None)),
    (FILE, ("F", keys.BYTES_MAX, bytes(4), bytes(16))),
    (REPLICA, "a/b"),
    (REPLICA, "p" * 1024),
    (CLOSED, True),
    (CLOSED, False),
    (OPEN_DATA, "PUBLIC"),
    (OPEN_DATA, "SUSPENDED"),
    (DOI, "10.5072/ATLAS.1"),
    (DOI, "10.123456789/a-b_c;(d)/E:1"),
    (PROTOCOLS, ()),
    (PROTOCOLS, (tuple(PROTOCOL),) * 16),
    (PROTOCOLS, (tuple(PROTOCOL._replace(hostname="", prefix="", port=0, lan=None)),)),
    (ATTRIBUTES, ()),
    (ATTRIBUTES, (("a", "1"), ("b", "1"))),
    (Attribute(DATASET, "later"), (1, b"x", None)),
    (Attribute(FILE, keys.PROTOCOLS), 7),  # a field has a meaning for its kind of fact only
    (Attribute(Scope("a"), fields.JSON_PREFIX + "x"), "{"),
    (Constituent(DATASET, FILE), True),
    *((Attribute(DATASET, field), value) for field in (*FLAGS, "transient") for value in (True, False)),
    *((Attribute(Scope("a"), fields.ATTACHABLE), value) for value in (True, False)),
    *((Attribute(REPLICA, fields.STATE), state) for state in fields.STATES),
    *((Attribute(DATASET, fields.RECORD), value) for value in (0, (1 << 63) - 1)),
    *((Attribute(FILE, "events"), value) for value in (0, fields.EVENTS_MAX)),
    *((Attribute(FILE, field), value) for field in NUMBERS for value in (-1, 0, (1 << 63) - 1, -(1 << 63) + 1)),
    *((Attribute(FILE, field), value) for field in TEXTS for value in ("x", "ü" * 255)),
    (Attribute(FILE, "guid"), bytes(16)),
    (Attribute(DATASET, fields.OPENDATA_META), "{}"),
    *((Attribute(FILE, fields.JSON_PREFIX + key), text) for key in ("", "x", "a.b") for text in ("null", "1", '"x"', "[]", '{"a":[]}')),
]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_values_that_may_be_said(key: Key, value: Any) -> None:
    assert check_value(key, value) == value


def test_values_are_typed() -> None:
    assert type(check_value(FILE, ("F", 1, None, None))) is Identity
    assert type(check_value(PROTOCOLS, (tuple(PROTOCOL),))[0]) is Protocol
    assert check_value(to_wire(FILE), ("F", 1, None, None)) == Identity(keys.FILE, 1)


def door(**changes: Any) -> Any:
    return (tuple({**PROTOCOL._asdict(), **changes}.values()),)


BAD: list[tuple[Key, Any]] = [
    *((key, value) for key in (Scope("a"), Attachment(DATASET, FILE), DISK) for value in (False, None, 1, "yes", ())),
    *((FILE, value) for value in (None, True, (), ("F",), ("F", 1, None), ("F", 1, None, None, None), ("X", 1, None, None))),
    *((FILE, ("F", size, None, None)) for size in (None, -1, True, "1", keys.BYTES_MAX + 1)),
    *((FILE, ("F", 1, adler32, None)) for adler32 in (b"", bytes(3), bytes(5), "00000001", 1)),
    *((FILE, ("F", 1, None, md5)) for md5 in (b"", bytes(15), bytes(17), "0" * 32)),
    *((DATASET, (kind, *rest)) for kind in "DC" for rest in ((0, None, None), (None, bytes(4), None), (None, None, bytes(16)))),
    *((REPLICA, path) for path in ("", None, b"a", True, "p" * 1025, "a\nb", "a\x00b")),
    *((CLOSED, value) for value in (0, 1, None, "true", ())),
    *((OPEN_DATA, value) for value in ("DRAFT", "public", "", None, b"PUBLIC", True, ("PUBLIC",))),
    *(
        (DOI, value)
        for value in ("", "10.5072", "10.5072/", "doi:10.5072/X", "https://doi.org/10.5072/X", "10.507/X", "10.5072/X Y", "10.5072/X\n")
    ),
    *((DOI, value) for value in ("١٠.5072/X", "10.٥٠٧٢/X", "10.5072/ü", "10.5072/" + "x" * 248, None, b"10.5072/X")),
    *((PROTOCOLS, value) for value in (None, "x", (1,), (tuple(PROTOCOL)[:-1],), (tuple(PROTOCOL),) * 17)),
    *((PROTOCOLS, door(**{field: ""})) for field in ("scheme", "impl")),
    *((PROTOCOLS, door(**{field: "a\nb"})) for field in ("scheme", "impl", "hostname", "prefix")),
    *((PROTOCOLS, door(**{field: "x" * 1025})) for field in ("scheme", "impl", "hostname", "prefix")),
    *((PROTOCOLS, door(port=port)) for port in (-1, 65536, None, "1094", True)),
    *((PROTOCOLS, door(**{field: value})) for field in ("lan", "wan", "tpc") for value in (-1, 65536, "1", True)),
    *((ATTRIBUTES, value) for value in (None, (("b", "1"), ("a", "1")), (("a", "1"), ("a", "1")), (("a",),), (("a", 1),), (("", "x"),))),
    *((Constituent(DATASET, FILE), value) for value in (False, None, 1, ("F", 1, None, None))),
    *((Attribute(DATASET, field), value) for field in (*FLAGS, "transient") for value in (0, 1, None, "true", ())),
    *((Attribute(Scope("a"), fields.ATTACHABLE), value) for value in (0, None, "no")),
    *((Attribute(REPLICA, fields.STATE), state) for state in ("A", "COPYING", "UNAVAILABLE", "BEING_DELETED", "available", b"BAD", None)),
    *((Attribute(DATASET, fields.RECORD), value) for value in (-1, 1 << 63, "1", True, None)),
    *((Attribute(FILE, "events"), value) for value in (-1, fields.EVENTS_MAX + 1, "1", True, None)),
    *((Attribute(FILE, field), value) for field in NUMBERS for value in (1 << 63, -(1 << 63), "1", True, None, b"1")),
    *((Attribute(FILE, field), value) for field in TEXTS for value in ("", "x" * 256, "a\nb", b"x", 1, None)),
    *((Attribute(FILE, "guid"), value) for value in (bytes(15), bytes(17), "0" * 32, "x" * 16, None)),
    *((Attribute(DATASET, fields.OPENDATA_META), value) for value in ("[]", "null", "1", "", b"{}", {}, None)),
    *((Attribute(FILE, fields.JSON_PREFIX + "x"), value) for value in ("", " 1", "[", {}, 1, None, b"1")),
    *((Attribute(DATASET, "later"), value) for value in (1.5, {}, [], (1, (1.5,)))),
    *((ATTRIBUTES, value) for value in (tuple((f"{i:03}", "x") for i in range(65)), (("a", "x" * 256),), (("a", "x\ny"),))),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_values_that_no_reader_could_take(key: Key, value: Any) -> None:
    with pytest.raises(RejectedSegment) as caught:
        check_value(key, value)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (("F", 1, bytes(4), bytes(16)), ("F", 1, bytes(4), bytes(16)), True),
        (("F", 1, bytes(4), None), ("F", 1, None, bytes(16)), True),
        (("F", 1, bytes(4), None), ("F", 1, b"abcd", None), False),
        (("F", 1, None, bytes(16)), ("F", 1, None, b"x" * 16), False),
        (("F", 1, None, None), ("F", 2, None, None), False),
        (("D", None, None, None), ("C", None, None, None), False),
        (("D", None, None, None), ("F", 1, None, None), False),
    ],
)
def test_identities_agree_where_both_say_something(one: Any, other: Any, agree: bool) -> None:
    assert Identity(*one).agrees(Identity(*other)) is Identity(*other).agrees(Identity(*one)) is agree
