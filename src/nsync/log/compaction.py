"""What is live below a floor, and the digest that its signers sign (R3.8, R4.7, R4.8).

An op is live unless *every* statement in it is superseded: its author said something later about the same key, which counts, and lies below
the floor too. Then slots read the same without it, now and later: nothing reaches below a floor, so what supersedes can
never be voided. Claims of identity (R3.6), grants, revocations, acknowledgements and ops of unknown kinds are always live.

The floor, and not the home's word alone, because a fork or an amendment can void what a home had acknowledged above it
(docs/adr/0011). So *live* is a function of the segments below the floor's heads, the same for whoever has them.

The digest is a tree, so that a difference is found by parts: ops in blocks of 4096 seqs, blocks of one log in order, logs by author.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from nsync.authority.charter import ID_BYTES

BLOCK_OPS = 4096


def block_digest(live: Iterable[tuple[int, bytes]]) -> bytes:
    """The digest of one block: of its live ops, each by its seq and hash (log.segment.leaf_of), in order."""
    block = hashlib.blake2b(digest_size=ID_BYTES, person=b"nsync block")
    for seq, leaf in live:
        block.update(seq.to_bytes(8, "big") + leaf)
    return block.digest()


def live_digest(blocks: Mapping[bytes, Sequence[bytes]]) -> bytes:
    """The digest of all that is live: author → the digests of the blocks of its log from seq 1 on."""
    total = hashlib.blake2b(digest_size=ID_BYTES, person=b"nsync live")
    for author, digests in sorted(blocks.items()):
        total.update(author + len(digests).to_bytes(8, "big") + b"".join(digests))
    return total.digest()


def digest_of(live: Mapping[bytes, Sequence[tuple[int, bytes]]], heads: Mapping[bytes, int]) -> bytes:
    """`live_digest` from the live ops of each log, up to its head."""
    return live_digest(
        {
            author: [
                block_digest(one for one in live.get(author, ()) if first < one[0] <= first + BLOCK_OPS)
                for first in range(0, last, BLOCK_OPS)
            ]
            for author, last in heads.items()
        }
    )
