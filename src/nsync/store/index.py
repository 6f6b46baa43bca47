"""The index from keys to ops: 63-bit numbers in which everything about one DID, RSE or scope lies together.

    39 bits  hash of the anchor: the DID, RSE or scope that a statement is indexed under (namespace.keys.anchor_of)
     2 bits  ITSELF: the fact and its attributes · HANGING: edges whose other end it is · EDGE: edges that it anchors
    22 bits  of the whole key; 0 for HANGING, so that what hangs on a node is listed in the order in which it came

Numbers can collide: whoever finds an op through the index looks whether it speaks of the key. The hash has a key of its own in each
database, so that no author can choose names that collide.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from zlib import crc32

from sqlalchemy import Connection

from nsync.catalogue.opendata import Name, name_of
from nsync.namespace import fields
from nsync.namespace.keys import anchor_of, key_bytes
from nsync.store import kept

ITSELF, HANGING, EDGE = 0, 1 << 22, 2 << 22
EDGE_FIRST = 1 << 22
"""How many numbers each of the three has."""
_KEY = EDGE_FIRST - 1
_NODE_SHIFT = 25
"""Of a 64-bit hash, 39 bits are left."""
NODES_KEPT = 1 << 16
"""Anchors whose numbers are remembered: a dataset and an RSE are named by each of their files. Some 10 MB at most."""

EDGES = (fields.ATTACHMENT, fields.CONSTITUENT, fields.REPLICA)


class Numbers:
    """The numbers of keys, under one database's hash key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nodes: dict[Any, int] = {}

    def node(self, anchor: Any) -> int:
        """The first of the numbers of what is about `anchor`: a wire key, or the bytes of a DOI or record."""
        found = self._nodes.get(anchor)
        if found is None:
            if len(self._nodes) >= NODES_KEPT:
                self._nodes.clear()
            raw = anchor if type(anchor) is bytes else key_bytes(anchor)
            digest = hashlib.blake2b(raw, digest_size=8, key=self._secret).digest()
            found = self._nodes[anchor] = int.from_bytes(digest, "big") >> _NODE_SHIFT << 24
        return found

    def about(self, key: Any) -> int:
        """The number under which statements about `key` are found."""
        fact = key[2:] if key[0] == fields.ATTRIBUTE else key
        kind = EDGE if fact[0] in EDGES else ITSELF
        return self.node(anchor_of(key)) | kind | crc32(key_bytes(key)) & _KEY

    def hanging(self, node: Any) -> int:
        """The number under which the edges are found that hang on `node` by their other end."""
        return self.node(node) | HANGING

    def of_statement(self, key: Any, value: Any) -> Iterator[int]:
        """Every number under which a statement is listed."""
        yield self.about(key)
        tag = key[0]
        if tag == fields.ATTACHMENT or tag == fields.CONSTITUENT:
            yield self.hanging((fields.DID, key[1], key[2]))
        elif tag == fields.REPLICA:
            yield self.hanging((fields.RSE, key[3], key[4]))
        elif value is not None and (name := name_of(key, value)) is not None:
            yield self.hanging(name_node(name))


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


@lru_cache(maxsize=64)
def _numbers(secret: bytes) -> Numbers:
    return Numbers(secret)
