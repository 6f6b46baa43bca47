"""What simulated users say: random statements about few names, so that they meet.

An op is drawn for an author. Most are in order; some clash in type or content, some are about scopes in which the author has
no right to speak, and those must have no effect anywhere. Rights come and go: homes grant them, and take them back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Key, Replica, Rse, Scope
from nsync.namespace.ops import (
    ACKNOWLEDGE,
    VERBS,
    Assert,
    Grant,
    Retract,
    Revoke,
    Said,
    Statement,
    decode_op,
    encode_grant,
    encode_op,
    encode_revoke,
)
from nsync.testing.federation import SHARED

FILES, DATASETS, CONTAINERS = ("f1", "f2"), ("d1", "d2"), ("c1", "c2", "c3")
TYPES = {**dict.fromkeys(FILES, keys.FILE), **dict.fromkeys(DATASETS, keys.DATASET), **dict.fromkeys(CONTAINERS, keys.CONTAINER)}
KINDS = ("did",) * 4 + ("edge",) * 4 + ("close",) * 2 + ("opendata", "doi", "rse", "replica", "scope")
OPS_MAX = 4
"""Of a changeset: most are small."""
RIGHTS_SHARE, REVOKING_SHARE = 0.1, 0.3
"""Of all ops: grants; and of a home that has granted something: revocations, and more grants."""
LONG_OPS = 4097
"""One more than a segment holds, so that the changeset has two."""


class Workload:
    """Draws ops from one stream of random numbers."""

    def __init__(self, rng: random.Random, names: Sequence[str]) -> None:
        self._rng = rng
        self._names = names
        self._grants: dict[str, list[Revoke]] = {name: [] for name in names}
        """What each home can revoke."""

    def changeset(self, author: str, long: bool = False) -> list[bytes]:
        """The ops that `author` publishes at once; `long`: more than fit into one segment."""
        ops = [self.op(author) for _ in range(self._rng.randint(1, OPS_MAX))]
        filling = [ACKNOWLEDGE] * (LONG_OPS - len(ops)) if long else []
        return [*ops[:1], *filling, *ops[1:]]

    def published(self, name: str, author: bytes, first: int, ops: Sequence[bytes]) -> None:
        """`name` has published `ops` at `first`: what it granted it can revoke from now on."""
        for seq, op in enumerate(ops, first):
            said: tuple[Said, ...] = decode_op(op)
            if said and isinstance(said[0], Grant):
                self._grants[name].append(Revoke(author, seq))

    def opening(self, author: str) -> list[bytes]:
        """What `author` publishes at the beginning: everybody may do anything in its own scope."""
        return [encode_grant(Grant(name, author, "", VERBS, None)) for name in self._names if name != author]

    def op(self, author: str) -> bytes:
        """One op: statements about one to three different keys, a grant, or a revocation."""
        if self._rng.random() < (REVOKING_SHARE if self._grants[author] else RIGHTS_SHARE):
            return self._right(author)
        said = [self._statement(author) for _ in range(self._rng.choice((1, 1, 2, 3)))]
        return encode_op({statement.key: statement for statement in said}.values())

    def _right(self, author: str) -> bytes:
        if self._grants[author] and self._rng.randrange(2):
            return encode_revoke(self._rng.choice(self._grants[author]))
        scope = self._rng.choice((author, author, self._rng.choice(self._names)))
        to, prefix = self._rng.choice(self._names), self._rng.choice(("", "", "d", "f"))
        return encode_grant(Grant(to, scope, prefix, tuple(sorted(self._rng.sample(VERBS, self._rng.randint(1, len(VERBS))))), None))

    def _statement(self, author: str) -> Statement:
        key, value = getattr(self, f"_{self._rng.choice(KINDS)}")(author)
        return Retract(key) if self._rng.randrange(4) == 0 else Assert(key, value)

    def _did(self, author: str) -> tuple[Key, object]:
        did = self._draw_did(author)
        kind = TYPES[did.name] if self._rng.randrange(10) else self._rng.choice("FDC")
        return did, self._content() if kind == keys.FILE else Identity(kind)

    def _edge(self, author: str) -> tuple[Key, object]:
        parent = self._draw_did(author, DATASETS + CONTAINERS)
        below = FILES if parent.name in DATASETS else DATASETS + CONTAINERS
        child = self._draw_did(author, below if self._rng.randrange(8) else tuple(TYPES))
        return Attachment(parent, child), True

    def _close(self, author: str) -> tuple[Key, object]:
        return Attribute(self._draw_did(author, DATASETS + CONTAINERS), keys.CLOSED), self._rng.choice((True, True, False))

    def _opendata(self, author: str) -> tuple[Key, object]:
        return Attribute(self._draw_did(author), keys.OPENDATA), self._rng.choice((keys.PUBLIC, keys.SUSPENDED))

    def _doi(self, author: str) -> tuple[Key, object]:
        prefix = self._rng.choice(self._names).upper()
        return Attribute(self._draw_did(author), keys.DOI), f"10.5072/{prefix}.{self._rng.randint(1, 2)}"

    def _rse(self, author: str) -> tuple[Key, object]:
        return Rse(author, "DISK"), True

    def _replica(self, author: str) -> tuple[Key, object]:
        return Replica(self._draw_did(author, FILES), Rse(author, "DISK")), self._rng.choice(("p/1", "p/2"))

    def _scope(self, author: str) -> tuple[Key, object]:
        return Scope(self._draw_scope(author)), True

    def _draw_did(self, author: str, names: Sequence[str] = tuple(TYPES)) -> Did:
        return Did(self._draw_scope(author), self._rng.choice(names))

    def _draw_scope(self, author: str) -> str:
        """Most often one of two scopes in which they meet: one that guests write in, and one for which they need a grant."""
        if self._rng.randrange(4):
            return self._rng.choice((self._names[0] + SHARED, self._names[0] + SHARED, self._names[0]))
        return self._rng.choice((author, author + SHARED, self._rng.choice(self._names)))

    def _content(self) -> Identity:
        size = self._rng.randint(1, 2)
        return Identity(keys.FILE, size, bytes([size] * 4), None)
