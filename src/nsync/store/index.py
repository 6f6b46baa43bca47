"""The index from keys to ops: everything that is said about one DID, RSE or scope, and what is anchored at it, lies together.

An op is listed under (node, key) for each of its statements. `node` is a hash of the statement's anchor (namespace.keys.anchor_of), with
one of three kinds in its last bits: ITSELF for the fact and its attributes, EDGE for attachments, constituents and replicas that are
anchored there, HANGING for those whose other end it is. `key` tells the statements of one kind apart: nothing for the fact itself and
for HANGING, so that what hangs on a node is listed in the order in which it came.

The hashes have 61 bits and a key of their own in each database, so that nobody can choose names that collide; whoever finds an op looks
all the same whether it speaks of the key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection

from nsync.catalogue.opendata import Name, name_of
from nsync.namespace import fields
from nsync.namespace.keys import key_bytes
from nsync.store import kept

ITSELF, HANGING, EDGE = 0, 1, 2
_KIND_BITS = 2

NODES_KEPT = 1 << 16
"""Names whose hashes are remembered: a dataset and an RSE are named by each of their files."""
NODES_BYTES_MAX = 8 << 20
"""Of these names, as they are hashed. In memory some 15 MB of usual ones, and 60 MB of whatever anybody thinks of: of four bytes a
character."""
DATABASES_KEPT = 8
"""Whose names are remembered, also between transactions: a node has one."""


class Listed(NamedTuple):
    """Where ops are listed."""

    node: int
    key: int


class Numbers:
    """The hashes of names, under one database's key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._hashes: dict[Any, int] = {}
        self._bytes = 0

    def node(self, anchor: Any, kind: int = ITSELF) -> int:
        """What is about `anchor`, a wire key or the bytes of a name."""
        found = self._hashes.get(anchor)
        if found is None:
            raw = anchor if type(anchor) is bytes else key_bytes(anchor)
            if len(self._hashes) >= NODES_KEPT or self._bytes + len(raw) > NODES_BYTES_MAX:
                self._hashes.clear()
                self._bytes = 0
            self._bytes += len(raw)
            digest = hashlib.blake2b(raw, digest_size=8, key=self._secret).digest()
            found = self._hashes[anchor] = int.from_bytes(digest, "big") >> 1 + _KIND_BITS << _KIND_BITS
        return found | kind

    def about(self, key: Any) -> Listed:
        """Where statements about `key` are listed."""
        tag = key[0]
        if tag == fields.ATTACHMENT:
            return Listed(self.node((fields.DID, key[3], key[4]), EDGE), self.node((fields.DID, key[1], key[2])))
        if tag == fields.REPLICA:
            return Listed(self.node((fields.DID, key[1], key[2]), EDGE), self.node((fields.RSE, key[3], key[4])))
        if tag == fields.CONSTITUENT:
            return Listed(self.node((fields.DID, key[3], key[4]), EDGE), self.node((fields.DID, key[1], key[2]), EDGE))
        if tag == fields.ATTRIBUTE:
            fact = self.about(key[2:])
            return Listed(fact.node, fact.key ^ self.node(key[1].encode()))
        return Listed(self.node(key), 0)

    def of_statement(self, key: Any, value: Any) -> Iterator[Listed]:
        """Everywhere a statement is listed; `value` is None for a Retract."""
        yield self.about(key)
        tag = key[0]
        if tag == fields.ATTACHMENT or tag == fields.CONSTITUENT:
            yield Listed(self.node((fields.DID, key[1], key[2]), HANGING), 0)
        elif tag == fields.REPLICA:
            yield Listed(self.node((fields.RSE, key[3], key[4]), HANGING), 0)
        elif value is not None and (name := name_of(key, value)) is not None:
            yield Listed(self.node(name_node(name), HANGING), 0)


class Listing:
    """The rows of the index for ops of one branch: `Numbers.of_statement`, for many at once."""

    def __init__(self, numbers: Numbers, branch: int) -> None:
        self._numbers = numbers
        self._branch = branch
        self.rows: list[tuple[int, int, int, int]] = []

    def add(self, seq: int, says: Mapping[Any, Any]) -> None:
        """List an op; `says` is wire key → value, None for a Retract."""
        rows, branch, node = self.rows, self._branch, self._numbers.node
        hanging = set()
        for key, value in says.items():
            tag = key[0]
            if tag == fields.DID:
                rows.append((node(key), 0, branch, seq))
            elif tag == fields.ATTACHMENT:
                parent = node((fields.DID, key[1], key[2]))
                rows.append((node((fields.DID, key[3], key[4])) | EDGE, parent, branch, seq))
                hanging.add(parent)
            elif tag == fields.REPLICA:
                rse = node((fields.RSE, key[3], key[4]))
                rows.append((node((fields.DID, key[1], key[2])) | EDGE, rse, branch, seq))
                hanging.add(rse)
            else:
                about, *others = self._numbers.of_statement(key, value)
                rows.append((*about, branch, seq))
                hanging.update(other.node & ~HANGING for other in others)
        rows += [(end | HANGING, 0, branch, seq) for end in hanging]


def name_node(name: Name) -> bytes:
    """What the DIDs hang on that ask for one DOI or record id (6.6)."""
    return f"{name[0]}:{name[1]}".encode()


def numbers(connection: Connection) -> Numbers:
    """The numbers of this database; its hash key is drawn when it is first asked for, in a transaction that may write."""
    secret = kept.read(connection, "index")
    if secret is None:
        secret = secrets.token_bytes(16)
        kept.write(connection, "index", secret)
    return _numbers(secret)


@lru_cache(maxsize=DATABASES_KEPT)
def _numbers(secret: bytes) -> Numbers:
    return Numbers(secret)
