"""Ops: what one place of a log says (R3.1, R3.2, R5.2).

An op is a run of statements, so that a file can come with its identity, first parent and first replica at the cost of one
dot. Each statement is judged alone. On the wire: `(1, statement, …)` with `(key, value)` for an Assert and `(key,)` for a Retract.
Grants and revocations are ops of their own. An op of a kind that this version does not know is stored and forwarded, and says
nothing here (R4.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Optional, Union

from nsync.clock import STAMP_MAX
from nsync.errors import RejectedSegment
from nsync.namespace import codec, fields
from nsync.namespace.fields import check_text, require
from nsync.namespace.keys import NAME_CHARS_MAX, SCOPE_CHARS_MAX, Key, Wire, check_key, key_of, to_wire

OP_BYTES_MAX = 1 << 16
"""An op is a few hundred bytes; this bounds what one place of a log can hold, well below a segment."""
STATEMENTS_MAX = 64
AUTHOR_BYTES = 16
SEQ_MAX = 1 << 62

STATEMENTS_KIND = 1
ACKNOWLEDGE_KIND = 2
"""An op that says nothing itself: a home publishes it so that its log has guests' statements in its past (R5.6)."""
GRANT_KIND = 3
REVOKE_KIND = 4

VERBS = ("attach", "close", "create", "download", "meta", "publish", "query", "remove", "replica", "suspend", "upload")
"""What a grant can allow (R5.2)."""


class Assert(NamedTuple):
    """The author says: `key` has `value`."""

    key: Key
    value: Any


class Retract(NamedTuple):
    """The author says: `key` is no more."""

    key: Key


class Grant(NamedTuple):
    """The home of `scope` lets the instance `to` use `verbs` there, on names that begin with `prefix` (R5.2).

    The grant is named by its dot. `not_after_ms` ends no grant by itself: it tells the home when to revoke, and servers when to refuse.
    """

    to: str
    scope: str
    prefix: str
    verbs: tuple[str, ...]
    """Sorted."""
    not_after_ms: Optional[int]


class Revoke(NamedTuple):
    """The home takes back the grant with this dot, from here on."""

    author: bytes
    seq: int


Statement = Union[Assert, Retract]
Said = Union[Assert, Retract, Grant, Revoke]


def encode_op(statements: Iterable[Statement]) -> bytes:
    """The canonical bytes of one op. Raises RejectedSegment when no peer would accept it."""
    said = ((to_wire(s.key), _plain(s.value)) if isinstance(s, Assert) else (to_wire(s.key),) for s in statements)
    return _checked((STATEMENTS_KIND, *said))


def encode_grant(grant: Grant) -> bytes:
    """The canonical bytes of the op that makes `grant`. Raises RejectedSegment when no peer would accept it."""
    return _checked((GRANT_KIND, *grant))


def encode_revoke(revoke: Revoke) -> bytes:
    """The canonical bytes of the op that takes a grant back. Raises RejectedSegment when no peer would accept it."""
    return _checked((REVOKE_KIND, *revoke))


ACKNOWLEDGE = codec.encode((ACKNOWLEDGE_KIND,))


def decode_op(raw: bytes) -> tuple[Said, ...]:
    """What the op in `raw` says: nothing for a kind that is not known here. Raises RejectedSegment."""
    op = wire_op(raw)
    if op[0] == STATEMENTS_KIND:
        return tuple(
            Retract(key_of(said[0])) if len(said) == 1 else Assert(key_of(said[0]), fields.typed(said[0], said[1])) for said in op[1:]
        )
    if op[0] == GRANT_KIND:
        return (Grant._make(op[1:]),)
    return (Revoke._make(op[1:]),) if op[0] == REVOKE_KIND else ()


def wire_op(raw: bytes) -> Wire:
    """The op in `raw` as plain tuples, fully checked: its kind, then for statements `(key, value)` or `(key,)` each.

    For those who need no objects: `key_of` makes a key of a wire key, and `key_bytes`, `anchor_of` and `scope_of` take it as it is.
    Raises RejectedSegment.
    """
    if len(raw) > OP_BYTES_MAX:
        raise RejectedSegment(f"an op has {len(raw)} bytes; at most {OP_BYTES_MAX} are allowed")
    op: Wire = codec.unpack(raw, "op")
    if type(op) is not tuple or not op or type(op[0]) is not int or op[0] < 1:
        codec.check(op, "op")
        raise RejectedSegment("an op is an array that begins with its kind")
    check = _KINDS.get(op[0])
    if check is None:
        codec.check(op, "op")
    else:
        check(op)
    return op


def stored_op(raw: bytes) -> Wire:
    """What `wire_op` made of the op when it was stored."""
    op: Wire = codec.load(raw)
    return op


def _statements(op: Wire) -> None:
    if not 1 < len(op) <= STATEMENTS_MAX + 1:
        raise RejectedSegment(f"an op has {len(op) - 1} statements; 1 to {STATEMENTS_MAX} are allowed")
    for said in op[1:]:
        if type(said) is not tuple or len(said) not in (1, 2):
            raise RejectedSegment("a statement is (key, value) or (key,)")
        check_key(said[0])
        if len(said) == 2:
            fields.check_value(said[0], said[1])
    if len(op) > 2 and len({said[0] for said in op[1:]}) != len(op) - 1:
        raise RejectedSegment("an op says two things about one key")


def _grant(op: Wire) -> None:
    require(len(op) == 6, op, "a grant (3, to, scope, prefix, verbs, not after)")
    _, to, scope, prefix, verbs, not_after_ms = op
    check_text(to, "instance", SCOPE_CHARS_MAX)
    check_text(scope, "scope", SCOPE_CHARS_MAX)
    if prefix != "":
        check_text(prefix, "prefix", NAME_CHARS_MAX)
    known = type(verbs) is tuple and all(type(verb) is str and verb in VERBS for verb in verbs)
    require(known and len(verbs) > 0 and list(verbs) == sorted(set(verbs)), verbs, "a sorted array of verbs")
    good = not_after_ms is None or (type(not_after_ms) is int and 0 <= not_after_ms <= STAMP_MAX)
    require(good, not_after_ms, f"an end of a grant: null or 0 to {STAMP_MAX} ms")


def _revoke(op: Wire) -> None:
    require(len(op) == 3, op, "a revocation (4, author, seq)")
    require(type(op[1]) is bytes and len(op[1]) == AUTHOR_BYTES, op[1], f"an author id of {AUTHOR_BYTES} bytes")
    require(type(op[2]) is int and 1 <= op[2] <= SEQ_MAX, op[2], "a sequence number")


_KINDS = {STATEMENTS_KIND: _statements, GRANT_KIND: _grant, REVOKE_KIND: _revoke}


def _checked(op: Wire) -> bytes:
    raw = codec.encode(op)
    wire_op(raw)
    return raw


def _plain(value: Any) -> Any:
    """Named tuples as plain tuples: the codec takes no subclass."""
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
