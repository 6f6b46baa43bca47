"""Ops: what one place of a log says (R3.1, R3.2).

An op is a run of statements, so that a file can come with its identity, first parent and first replica at the cost of one
dot. Each statement is judged alone. On the wire: `(1, statement, …)` with `(key, value)` for an Assert and `(key,)` for a Retract.
An op of a kind that this version does not know is stored and forwarded, and has no statements here (R4.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Union

from nsync.errors import RejectedSegment
from nsync.namespace import codec
from nsync.namespace.keys import Key, check_value, from_wire, to_wire

OP_BYTES_MAX = 1 << 16
"""An op is a few hundred bytes; this bounds what one place of a log can hold, well below a segment."""
STATEMENTS_MAX = 64

STATEMENTS_KIND = 1
ACKNOWLEDGE_KIND = 2
"""An op that says nothing itself: a home publishes it so that its log has guests' statements in its past (R5.6)."""


class Assert(NamedTuple):
    """The author says: `key` has `value`."""

    key: Key
    value: Any


class Retract(NamedTuple):
    """The author says: `key` is no more."""

    key: Key


Statement = Union[Assert, Retract]


def encode_op(statements: Iterable[Statement]) -> bytes:
    """The canonical bytes of one op. Raises RejectedSegment when no peer would accept it."""
    raw = codec.encode(
        (STATEMENTS_KIND, *((to_wire(s.key), _plain(s.value)) if isinstance(s, Assert) else (to_wire(s.key),) for s in statements))
    )
    decode_op(raw)
    return raw


ACKNOWLEDGE = codec.encode((ACKNOWLEDGE_KIND,))


def decode_op(raw: bytes) -> tuple[Statement, ...]:
    """The statements of the op in `raw`; none for a kind that is not known here. Raises RejectedSegment."""
    if len(raw) > OP_BYTES_MAX:
        raise RejectedSegment(f"an op has {len(raw)} bytes; at most {OP_BYTES_MAX} are allowed")
    op = codec.decode(raw, "op")
    if type(op) is not tuple or not op or type(op[0]) is not int or op[0] < 1:
        raise RejectedSegment("an op is an array that begins with its kind")
    if op[0] != STATEMENTS_KIND:
        return ()
    if not 1 < len(op) <= STATEMENTS_MAX + 1:
        raise RejectedSegment(f"an op has {len(op) - 1} statements; 1 to {STATEMENTS_MAX} are allowed")
    statements = tuple(_statement(wire) for wire in op[1:])
    if len({s.key for s in statements}) != len(statements):
        raise RejectedSegment("an op says two things about one key")
    return statements


def _statement(wire: Any) -> Statement:
    if type(wire) is not tuple or len(wire) not in (1, 2):
        raise RejectedSegment("a statement is (key, value) or (key,)")
    key = from_wire(wire[0])
    return Retract(key) if len(wire) == 1 else Assert(key, check_value(key, wire[1]))


def _plain(value: Any) -> Any:
    """Named tuples as plain tuples: the codec takes no subclass."""
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
