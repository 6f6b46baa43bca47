"""How many bytes a file DID takes, on the wire and stored, with real names and checksums that nothing can compress."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.names import File, files
from benchmarks.rows import Row
from benchmarks.streams import CHANGESET_OPS, EPOCH_MS, Author, file_statements
from nsync.clock import Stamp
from nsync.namespace.keys import DATASET, Did, Identity, Scope
from nsync.namespace.ops import Assert, encode_op
from nsync.transport.wire import FrameWriter

NAMES = ("log_bytes_per_file_did", "log_stored_bytes_per_file_did")
FILES = 1 << 16
CHECKSUM_BYTES = 4 + 16
SIZE_BYTES = 3.5
"""Entropy of the sizes: log-normal around 1 GB."""
GUID_BYTES = 16


def measure(directory: Path, entries: int) -> Iterator[Row]:
    some = list(islice(files(11), min(entries, FILES)))
    sent, stored = log_bytes(some)
    named_by_guid = sum(file.scope == "cms" for file in some) / len(some)
    random = CHECKSUM_BYTES + SIZE_BYTES + GUID_BYTES * named_by_guid
    yield Row("log_bytes_per_file_did", sent, "bytes, zstd as between peers, headers and signatures included", "random bytes in it", random)
    yield Row("log_stored_bytes_per_file_did", stored, "bytes in the frames, not compressed", "random bytes in it", random)


def log_bytes(some: list[File]) -> tuple[float, float]:
    """Bytes per file (sent, stored) of the changesets that publish `some`, with their datasets and scopes."""
    author, writer = Author("atlas"), FrameWriter()
    sent = stored = 0
    ops = list(_ops(some, author))
    for start in range(0, len(ops), CHANGESET_OPS):
        for frame in author.sign(ops[start : start + CHANGESET_OPS], [], Stamp(EPOCH_MS, start * 1000)):
            sent, stored = sent + len(writer.write(frame)), stored + len(frame)
    return (sent + len(writer.finish())) / len(some), stored / len(some)


def _ops(some: list[File], author: Author) -> Iterator[bytes]:
    known: set[object] = set()
    for file in some:
        for key, value in ((Scope(file.scope), True), (Did(file.scope, file.dataset), Identity(DATASET))):
            if key not in known:
                known.add(key)
                yield encode_op([Assert(key, value)])
        yield encode_op(file_statements(file, author.rse))
