"""What two peers have to tell each other: a pure function of their heads.

Equal digests mean equal heads, and nothing is to be done. Otherwise each author's log is compared by itself:

    mine < theirs    pull      what they have more
    mine > theirs    push      what they lack
    mine = theirs    nothing; with another hash the author has signed two histories (R4.5), and says so to us

A peer can lie about its heads; that costs a pull which brings nothing. What it sends is verified by the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgpack

from nsync.authority.charter import ID_BYTES
from nsync.log.stored import Head


class Plan(NamedTuple):
    """What to do about the difference between my heads and theirs."""

    pull: frozenset[bytes]
    """Authors of whom they have more."""
    push: frozenset[bytes]
    """Authors of whom I have more."""
    forked: frozenset[bytes]
    """Authors of whom we have equally much, but not the same."""


def digest(heads: Iterable[Head]) -> bytes:
    """16 bytes that are equal for equal heads, in whatever order they come."""
    return hashlib.blake2b(msgpack.packb(sorted(heads)), digest_size=ID_BYTES, person=b"nsync heads").digest()


def have(heads: Iterable[Head]) -> dict[bytes, int]:
    """How far each author's log goes."""
    return {head.author: head.seq for head in sorted(heads)}


def plan(mine: Iterable[Head], theirs: Iterable[Head]) -> Plan:
    """Compare my heads with theirs, author by author."""
    mine, theirs = list(mine), list(theirs)
    here, there = have(mine), have(theirs)
    hashes = {(head.author, head.seq): head.hash for head in mine}
    return Plan(
        pull=frozenset(a for a, seq in there.items() if seq > here.get(a, 0)),
        push=frozenset(a for a, seq in here.items() if seq > there.get(a, 0)),
        forked=frozenset(h.author for h in theirs if hashes.get((h.author, h.seq), h.hash) != h.hash),
    )
