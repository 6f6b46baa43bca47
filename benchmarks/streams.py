"""Logs to ingest: signed frames of several authors, written to a file as they are made, so that no run holds them in memory.

Each author publishes file DIDs with identity, parent and replica in one op; a scope, an RSE or a dataset is an op of its own
before the first file that needs it. Authors publish changesets in turn, each having seen the one before it.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.names import File, files
from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Charter
from nsync.authority.documents import draft, load, sign
from nsync.authority.effective import Authority
from nsync.clock import Stamp, next_stamp
from nsync.log.segment import EMPTY, Dep, Tip, build_changeset
from nsync.namespace.keys import DATASET, FILE, PROTOCOLS, Attachment, Attribute, Did, Identity, Protocol, Replica, Rse, Scope
from nsync.namespace.ops import Assert, encode_op, wire_op

AUTHORS = ("atlas", "cms", "belle2", "ska")
CHANGESET_OPS = 1 << 14
BATCH_BYTES = 4 << 20
"""Frames handed over at once, as the transport does."""
EPOCH_MS = 1_750_000_000_000

LENGTH = struct.Struct(">I")
_KEYS = {name: SigningKey(bytes([number + 1]) * 32) for number, name in enumerate(AUTHORS)}
_ROOT = SigningKey(bytes([99]) * 32)


def _charter() -> Charter:
    instances = [
        {"name": name, "key": key.public.hex(), "incarnation": "00" * 16, "url": f"http://{name}.example.org", "scopes": [f"{name}."]}
        for name, key in _KEYS.items()
    ]
    document = draft("bench", [{"name": "BENCH", "roots": [_ROOT.public.hex()], "threshold": 1, "instances": instances}])
    return load(json.dumps(sign(document, _ROOT)), verify)


CHARTER = _charter()
AUTHORITY = Authority(CHARTER)


class Author:
    """Where an author's log ends."""

    def __init__(self, name: str) -> None:
        instance = CHARTER.by_name(name)
        assert instance is not None
        self.name, self.id, self.tip = name, instance.author, EMPTY
        self.rse = Rse(name, "DISK")

    def sign(self, ops: Sequence[bytes], seen: Sequence[Author], stamp: Stamp) -> list[bytes]:
        """The frames of a changeset that has seen the ends of the logs of `seen`."""
        built = list(
            build_changeset(
                ops,
                federation=CHARTER.federation,
                charter_version=CHARTER.version,
                author=self.id,
                tip=self.tip,
                stamp=stamp,
                deps=[Dep(other.id, other.tip.seq, other.tip.hash) for other in seen if other.tip.seq],
                sign=_KEYS[self.name].sign,
            )
        )
        last = built[-1]
        self.tip = Tip(last.header.last, last.hash, last.header.stamp, 0)
        return [segment.frame for segment in built]


class Stream(NamedTuple):
    """Frames in a file, and what is said in them."""

    path: Path
    ops: int
    statements: int
    raw_bytes: int
    """The ops alone, without headers and signatures."""


class Federation:
    """Authors who go on from what they published before."""

    def __init__(self, directory: Path, seed: int, sampled: int = 50, authors: Sequence[str] = AUTHORS) -> None:
        """One file in `sampled` can be updated later."""
        self.directory, self.seed, self.sampled = directory, seed, sampled
        self.authors = [Author(name) for name in authors]
        self.rng = random.Random(seed)
        self.sample: list[tuple[Author, File]] = []
        self._last: list[Author] = []
        self._stamp = Stamp(EPOCH_MS, 0)
        self._written = 0

    def publish_new(self, n: int, apart: bool = False) -> Stream:
        """`n` ops about things that nobody has seen, each author its share; `apart`: each statement is an op of its own."""
        sources = [(author, self._ops_of(author, index, apart)) for index, author in enumerate(self.authors)]
        return self._write(self._rounds(sources, n))

    def publish_updates(self, n: int, changeset_ops: int = CHANGESET_OPS) -> Stream:
        """`n` ops of one statement each: the replica of a file, in no order, lies elsewhere now."""
        chosen = self.rng.sample(self.sample, min(n, len(self.sample)))
        mine = [(author, [file for other, file in chosen if other is author]) for author in self.authors]
        return self._write(
            (author, [_moved(author, file, self.rng) for file in changed[start : start + changeset_ops]])
            for start in range(0, len(chosen), changeset_ops)
            for author, changed in mine
        )

    def _rounds(self, sources: Sequence[tuple[Author, Iterator[bytes]]], n: int) -> Iterator[tuple[Author, list[bytes]]]:
        while n > 0:
            for author, source in sources:
                ops = [op for op, _ in zip(source, range(min(n, CHANGESET_OPS)))]
                n -= len(ops)
                if ops:
                    yield author, ops

    def _write(self, changesets: Iterable[tuple[Author, list[bytes]]]) -> Stream:
        self._written += 1
        path = self.directory / f"stream-{self.seed}-{self._written}"
        count = said = size = 0
        with path.open("wb") as file:
            for author, ops in changesets:
                if not ops:
                    continue
                self._stamp = next_stamp(EPOCH_MS, [self._stamp, *(a.tip.stamp for a in self.authors)])
                for frame in author.sign(ops, [a for a in self._last if a is not author], self._stamp):
                    file.write(LENGTH.pack(len(frame)) + frame)
                self._last = [author]
                count, size = count + len(ops), size + sum(map(len, ops))
                said += sum(len(wire_op(op)) - 1 for op in ops)
        return Stream(path, count, said, size)

    def _ops_of(self, author: Author, index: int, apart: bool) -> Iterator[bytes]:
        door = Protocol("root", f"eos.{author.name}.example.org", 1094, "/eos/opendata/", "gfal", 1, 1, 1)
        yield encode_op([Assert(author.rse, True), Assert(Attribute(author.rse, PROTOCOLS), (door,))])
        scopes: set[str] = set()
        dataset = None
        for file in files(self.seed * 1000 + self._written * 100 + index):
            file = file._replace(scope=f"{author.name}.{file.scope}")
            if file.scope not in scopes:
                scopes.add(file.scope)
                yield encode_op([Assert(Scope(file.scope), True)])
            if file.dataset != dataset:
                dataset = file.dataset
                yield encode_op([Assert(Did(file.scope, dataset), Identity(DATASET))])
            if self.rng.random() < 1 / self.sampled:
                self.sample.append((author, file))
            said = file_statements(file, author.rse)
            yield from map(encode_op, ([one] for one in said) if apart else [said])


def file_statements(file: File, rse: Rse) -> list[Assert]:
    """A file with identity, first parent and first replica."""
    did = Did(file.scope, file.name)
    return [
        Assert(did, Identity(FILE, file.size, file.adler32, file.md5)),
        Assert(Attachment(Did(file.scope, file.dataset), did), True),
        Assert(Replica(did, rse), file.path),
    ]


def _moved(author: Author, file: File, rng: random.Random) -> bytes:
    path = f"{rng.getrandbits(64):016x}/{file.path}"
    return encode_op([Assert(Replica(Did(file.scope, file.name), author.rse), path)])


def frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while length := file.read(LENGTH.size):
            yield file.read(LENGTH.unpack(length)[0])


def batches(path: Path, bytes_max: int = BATCH_BYTES) -> Iterator[list[bytes]]:
    """Frames in runs of at most `bytes_max`, at least one each."""
    batch: list[bytes] = []
    size = 0
    for frame in frames(path):
        if batch and size + len(frame) > bytes_max:
            yield batch
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    if batch:
        yield batch
