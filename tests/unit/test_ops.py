"""Ops: several statements in one place of a log, within limits."""

from __future__ import annotations

import pytest

from nsync.errors import RejectedSegment
from nsync.namespace import codec, keys
from nsync.namespace.keys import Attribute, Did, Identity, Scope
from nsync.namespace.ops import OP_BYTES_MAX, STATEMENTS_MAX, Assert, Retract, Statement, decode_op, encode_op
from tests.conformance.vocabulary import OP_ROWS, UNKNOWN_OP


@pytest.mark.parametrize("statements", OP_ROWS.values(), ids=OP_ROWS.keys())
def test_an_op_comes_back(statements: tuple[Statement, ...]) -> None:
    assert decode_op(encode_op(statements)) == statements


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
