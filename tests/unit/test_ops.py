"""Ops: several statements in one place of a log, within limits."""

from __future__ import annotations

from typing import Any

import pytest

from nsync.errors import RejectedSegment
from nsync.namespace import codec, keys
from nsync.namespace.keys import Attribute, Did, Identity, Scope
from nsync.namespace.ops import (
    ACKNOWLEDGE,
    OP_BYTES_MAX,
    SEQ_MAX,
    STATEMENTS_MAX,
    Assert,
    Retract,
    Revoke,
    Said,
    Statement,
    decode_op,
    encode_grant,
    encode_op,
    encode_revoke,
    wire_op,
)
from tests.conformance.vocabulary import GRANT, LATER_ROWS, OP_ROWS, UNKNOWN_OP, encoded


@pytest.mark.parametrize("said", [*OP_ROWS.values(), *LATER_ROWS.values()], ids=[*OP_ROWS.keys(), *LATER_ROWS.keys()])
def test_an_op_comes_back(said: tuple[Said, ...]) -> None:
    found = decode_op(encoded(said))
    assert found == said and [type(one) for one in found] == [type(one) for one in said]


def test_an_op_as_plain_tuples() -> None:
    raw = encode_op([Assert(Did("a", "x"), Identity(keys.FILE, 1)), Retract(Scope("a"))])
    assert wire_op(raw) == (1, ((2, "a", "x"), ("F", 1, None, None)), ((1, "a"),))
    assert wire_op(ACKNOWLEDGE) == (2,)
    assert wire_op(encode_revoke(Revoke(bytes(16), 7))) == (4, bytes(16), 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"to": ""},
        {"to": "x" * 256},
        {"to": "a\nb"},
        {"scope": ""},
        {"scope": "x" * 256},
        {"prefix": "x" * 1025},
        {"prefix": "a\x00"},
        {"prefix": None},
        {"verbs": ()},
        {"verbs": ("query", "meta")},
        {"verbs": ("meta", "meta")},
        {"verbs": ("own",)},
        {"verbs": "meta"},
        {"not_after_ms": -1},
        {"not_after_ms": (1 << 48) + 1},
        {"not_after_ms": True},
    ],
)
def test_a_grant_that_no_peer_would_accept_is_not_made(changes: dict[str, Any]) -> None:
    assert decode_op(encode_grant(GRANT)) == (GRANT,)
    with pytest.raises(RejectedSegment):
        encode_grant(GRANT._replace(**changes))


@pytest.mark.parametrize(("author", "seq"), [(bytes(15), 1), (bytes(17), 1), ("x" * 16, 1), (bytes(16), 0), (bytes(16), SEQ_MAX + 1)])
def test_a_revocation_names_a_place_in_a_log(author: Any, seq: int) -> None:
    assert decode_op(encode_revoke(Revoke(bytes(16), SEQ_MAX))) == (Revoke(bytes(16), SEQ_MAX),)
    with pytest.raises(RejectedSegment):
        encode_revoke(Revoke(author, seq))


def test_an_op_of_an_unknown_kind_has_no_statements() -> None:
    assert decode_op(UNKNOWN_OP) == ()


def test_limits_are_what_they_say() -> None:
    many = [Retract(Did("a", str(i))) for i in range(STATEMENTS_MAX)]
    assert len(decode_op(encode_op(many))) == STATEMENTS_MAX
    with pytest.raises(RejectedSegment, match="has 65 statements; 1 to 64"):
        encode_op([*many, Retract(Scope("a"))])
    with pytest.raises(RejectedSegment, match="has 0 statements"):
        encode_op([])
    filler = OP_BYTES_MAX - len(encode_op([Assert(Attribute(Scope("a"), "x"), b"x" * 256)])) + 256
    at_most = encode_op([Assert(Attribute(Scope("a"), "x"), b"x" * filler)])
    assert len(at_most) == OP_BYTES_MAX
    with pytest.raises(RejectedSegment, match=f"an op has {OP_BYTES_MAX + 1} bytes; at most {OP_BYTES_MAX}"):
        encode_op([Assert(Attribute(Scope("a"), "x"), b"x" * (filler + 1))])


@pytest.mark.parametrize(
    "statement",
    [
        Assert(Did("a", "x\ny"), Identity(keys.DATASET)),
        Assert(Did("a", "x" * 1025), Identity(keys.DATASET)),
        Assert(Did("a", "x"), Identity(keys.DATASET, 5)),
        Assert(Attribute(Did("a", "x"), keys.DOI), "none"),
        Retract(Scope("")),
    ],
)
def test_what_no_peer_would_accept_is_not_encoded(statement: Statement) -> None:
    with pytest.raises(RejectedSegment):
        encode_op([statement])


@pytest.mark.parametrize("wire", [(), ((1, "a"),) * 3, "x", None, 1, ((1, "a"), True, None)])
def test_a_statement_is_key_and_value_or_key(wire: object) -> None:
    with pytest.raises(RejectedSegment, match="a statement is"):
        decode_op(codec.encode((1, wire)))


def test_a_key_is_said_something_about_once() -> None:
    with pytest.raises(RejectedSegment, match="two things about one key"):
        encode_op([Assert(Scope("a"), True), Retract(Scope("a"))])
