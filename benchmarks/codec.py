"""Encoding, decoding and verifying, on one core, in CPU seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgpack

from benchmarks.names import File, files
from benchmarks.rows import Row, interleaved
from benchmarks.streams import CHARTER, EPOCH_MS, Author, file_statements
from nsync.auth.keys import verify
from nsync.clock import Stamp
from nsync.log.admission import check_segment
from nsync.log.segment import check_signature, decode_frame, root_of
from nsync.namespace.keys import Did, Replica
from nsync.namespace.ops import Assert, decode_op, encode_op

NAMES = ("codec_encode_ops_per_s", "codec_decode_ops_per_s", "verify_ops_per_s", "check_ops_per_s")
ROUNDS = 7
OPS = 8192
SEGMENT_OPS = 4096


def measure(directory: Path, entries: int) -> Iterator[Row]:
    yield from codec()
    yield from verified()


def codec() -> Iterator[Row]:
    """File DIDs, three statements an op, beside the library that does the work below."""
    author = Author("atlas")
    said = [file_statements(file, author.rse) for file in islice(files(5), OPS)]
    plain = [(1, *((tuple(s.key), tuple(s.value) if isinstance(s.value, tuple) else s.value) for s in op)) for op in said]
    raw = [encode_op(op) for op in said]
    assert raw == [msgpack.packb(op) for op in plain]
    spent = interleaved(
        {
            "encode": lambda: [encode_op(op) for op in said],
            "pack": lambda: [msgpack.packb(op) for op in plain],
            "decode": lambda: [decode_op(op) for op in raw],
            "unpack": lambda: [msgpack.unpackb(op, use_list=False) for op in raw],
        },
        ROUNDS,
    )
    rate = {name: OPS / took.cpu_s for name, took in spent.items()}
    yield Row("codec_encode_ops_per_s", rate["encode"], "file DIDs, checked as a receiver would", "msgpack.packb", rate["pack"])
    yield Row("codec_decode_ops_per_s", rate["decode"], "file DIDs, every rule checked", "msgpack.unpackb", rate["unpack"])


def verified() -> Iterator[Row]:
    """Frames of 4096 ops of one statement each, beside the hashes alone."""
    author = Author("atlas")
    frames = [frame for number in range(OPS // SEGMENT_OPS) for frame in _frames(author, number)]
    ops = [decode_frame(frame).ops for frame in frames]
    key = CHARTER.by_name(author.name).key  # type: ignore[union-attr]
    spent = interleaved(
        {
            "verify": lambda: [check_signature(decode_frame(frame), key, verify) for frame in frames],  # type: ignore[func-returns-value]
            "check": lambda: [check_segment(decode_frame(frame), CHARTER, verify) for frame in frames],  # type: ignore[func-returns-value]
            "hash": lambda: [root_of(run) for run in ops],
        },
        ROUNDS,
    )
    rate = {name: OPS / took.cpu_s for name, took in spent.items()}
    yield Row("verify_ops_per_s", rate["verify"], "ops of one statement: structure, root, signature", "hashing them alone", rate["hash"])
    yield Row("check_ops_per_s", rate["check"], "the same, and every op decoded and checked", "hashing them alone", rate["hash"])


def _frames(author: Author, number: int) -> Sequence[bytes]:
    ops = [_replica(file, author) for file in islice(files(number), SEGMENT_OPS)]
    return author.sign(ops, [], Stamp(EPOCH_MS, number + 1))


def _replica(file: File, author: Author) -> bytes:
    return encode_op([Assert(Replica(Did(f"atlas.{file.scope}", file.name), author.rse), file.path)])
