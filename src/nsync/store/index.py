"""The index from keys to ops: 63-bit numbers in which everything about one DID, RSE or scope lies together.

    39 bits  hash of the anchor: the DID, RSE or scope that a statement is indexed under (namespace.keys.anchor_of)
     2 bits  ITSELF: the fact and its attributes · HANGING: edges whose other end it is · EDGE: edges and replicas that it anchors
    22 bits  of the whole key; 0 for HANGING, so that what hangs on one node is listed in the order in which it came

Numbers can collide: whoever finds an op through the index looks whether it speaks of the key. The hash has a key of its own in each database,
so that no author can choose names that collide.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from zlib import crc32

from sqlalchemy import Connection, insert, select

from nsync.namespace import fields
from nsync.namespace.keys import Attribute, Did, anchor_of, key_bytes
from nsync.store import schema

ITSELF, HANGING, EDGE = 0, 1 << 22, 2 << 22
_KEY = (1 << 22) - 1
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
        elif tag == fields.ATTRIBUTE and key[2] == fields.DID and key[1] in UNIQUE:
            yield self.hanging(unique_node(key[1], value))


UNIQUE = (fields.DOI, fields.RECORD)
"""Fields whose values name one DID each (6.6): who asks for one is listed under it."""


def unique_node(field: str, value: Any) -> bytes:
    """What DIDs that ask for one DOI or record hang on."""
    return f"{field}:{value}".encode()


def is_unique(key: Any) -> bool:
    """Whether `key` is an attribute whose values name one DID each."""
    return isinstance(key, Attribute) and isinstance(key.fact, Did) and key.field in UNIQUE


def numbers(connection: Connection) -> Numbers:
    """The numbers of this database; its hash key is drawn when it is first asked for, in a transaction that may write."""
    query = select(schema.kept.c.value).where(schema.kept.c.name == "index")
    secret = connection.execute(query).scalar()
    if secret is None:
        secret = secrets.token_bytes(16)
        connection.execute(insert(schema.kept).values(name="index", value=secret))
    return _numbers(bytes(secret))


@lru_cache(maxsize=64)
def _numbers(secret: bytes) -> Numbers:
    return Numbers(secret)
