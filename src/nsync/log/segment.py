"""Segments: header, signature, ops, and the frame that carries them (R4.1, R4.2).

The signature covers the stored header bytes, the header names the hashes of the ops by one root: so the bytes verified are
the bytes stored and the bytes forwarded, one signature serves 4096 ops, and an op can later be replaced by its hash.
A frame is canonical msgpack `(header, signature, ops)` with every part as a byte string. An op that compaction took (R4.7) is told
from others by its first byte, which no msgpack has; its hash follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

from nsync.authority.charter import ID_BYTES, AuthorId, FederationId, Verify
from nsync.clock import STAMP_MAX, Stamp, next_stamp
from nsync.errors import RejectedSegment
from nsync.namespace import codec
from nsync.namespace.ops import OP_BYTES_MAX
from nsync.namespace.ops import SEQ_MAX as SEQ_MAX

FORMAT = 1
OPS_MAX = 4096
OPS_BYTES_MAX = 1 << 20
"""The ops of one segment together: what a receiver holds in memory to verify one."""
FRAME_BYTES_MAX = OPS_BYTES_MAX + (1 << 16)
"""A segment with its header (deps: 43 bytes each), signature and lengths."""
CHANGESET_SEGMENTS_MAX = 256
DEPS_MAX = 1000
SIGNATURE_BYTES = 64
NO_HASH = bytes(ID_BYTES)
"""What the first segment of a log names as its predecessor."""


class Dep(NamedTuple):
    """The commit-flagged segment of `author` that ends at `seq` and whose header has this hash."""

    author: AuthorId
    seq: int
    hash: bytes


class Header(NamedTuple):
    """What the author signs."""

    format: int
    federation: FederationId
    charter_version: int
    author: AuthorId
    group: int
    first: int
    n: int
    prev: bytes
    stamp: Stamp
    deps: tuple[Dep, ...]
    root: bytes
    commit: bool

    @property
    def last(self) -> int:
        """The seq of the last op."""
        return self.first + self.n - 1


class Segment(NamedTuple):
    """A segment whose structure and root are checked; its signature is checked by `check_signature`."""

    header: Header
    header_bytes: bytes
    signature: bytes
    ops: tuple[bytes, ...]

    @property
    def hash(self) -> bytes:
        """The 16 bytes by which successors and deps name this segment."""
        return header_hash(self.header_bytes)

    @property
    def frame(self) -> bytes:
        """The bytes that are stored and forwarded."""
        return codec.encode((self.header_bytes, self.signature, self.ops))

    def __str__(self) -> str:
        return name_of(self.header.author, self.header.first, self.header.last)


def name_of(author: bytes, first: int, last: int) -> str:
    """How texts name a segment."""
    return f"segment {author.hex()[:12]} {first}-{last}"


def header_hash(header: bytes) -> bytes:
    """The hash that names a header."""
    return hashlib.blake2b(header, digest_size=ID_BYTES, person=b"nsync header").digest()


GONE = b"\xc1"
"""How the place of an op begins that compaction took."""


def leaf_of(op: bytes) -> bytes:
    """The hash of an op, which stays when the op goes."""
    return op[1:] if op[:1] == GONE else hashlib.blake2b(op, digest_size=ID_BYTES, person=b"nsync op").digest()


def gone(op: bytes) -> bytes:
    """What stands in the place of `op` once compaction took it."""
    return GONE + leaf_of(op)


def root_of(ops: Sequence[bytes]) -> bytes:
    """The hash over the hashes of the ops: what lets one be replaced by its hash (R4.1)."""
    return hashlib.blake2b(b"".join(map(leaf_of, ops)), digest_size=ID_BYTES, person=b"nsync root").digest()


def encode_header(header: Header) -> bytes:
    """The canonical bytes of `header`."""
    return codec.encode((*header[:8], tuple(header.stamp), tuple(tuple(dep) for dep in header.deps), *header[10:]))


def decode_header(raw: bytes) -> Header:
    """The header in `raw`. Raises RejectedSegment."""
    parts = codec.decode(raw, "segment header", items_max=DEPS_MAX + 1)
    _check(type(parts) is tuple and len(parts) == len(Header._fields), "has another number of fields")
    _check(_is_int(parts[0], 0, 1 << 32), "has no format number")
    _check(parts[0] == FORMAT, f"has format {parts[0]}; this nsync reads format {FORMAT}")
    ids = (parts[1], parts[3], parts[7], parts[10])
    _check(all(type(i) is bytes and len(i) == ID_BYTES for i in ids), f"has an id or hash that is not {ID_BYTES} bytes")
    _check(_is_int(parts[2], 1, 1 << 32), "has no charter version")
    _check(_is_int(parts[4], 0, 0), "belongs to a log group; this nsync knows group 0 only")
    _check(_is_int(parts[5], 1, SEQ_MAX), "begins at no sequence number")
    _check(_is_int(parts[6], 1, OPS_MAX), f"announces no op or more than {OPS_MAX}")
    stamp, deps = parts[8], parts[9]
    _check(type(stamp) is tuple and len(stamp) == 2 and all(_is_int(n, 0, STAMP_MAX) for n in stamp), "has no stamp")
    _check(type(deps) is tuple and len(deps) <= DEPS_MAX and all(map(_is_dep, deps)), "has malformed deps")
    _check(list(deps) == sorted(set(deps)), "has deps that are unsorted or named twice")
    _check(type(parts[11]) is bool, "has no commit flag")
    return Header._make((*parts[:8], Stamp(*stamp), tuple(Dep(*dep) for dep in deps), *parts[10:]))


def decode_frame(frame: bytes) -> Segment:
    """The segment in `frame`, its structure, limits and root checked. Raises RejectedSegment."""
    if len(frame) > FRAME_BYTES_MAX:
        raise RejectedSegment(f"a segment has {len(frame)} bytes; at most {FRAME_BYTES_MAX} are allowed")
    parts = codec.split(frame, OPS_MAX) or codec.decode(frame, "segment")
    _check(type(parts) is tuple and len(parts) == 3, "is not (header, signature, ops)")
    header_bytes, signature, ops = parts
    _check(type(header_bytes) is bytes and type(ops) is tuple, "is not (header, signature, ops)")
    _check(type(signature) is bytes and len(signature) == SIGNATURE_BYTES, f"has no signature of {SIGNATURE_BYTES} bytes")
    _check(all(type(op) is bytes and len(op) <= OP_BYTES_MAX for op in ops), f"has an op that is no byte string of at most {OP_BYTES_MAX}")
    _check(all(op[:1] != GONE or len(op) == 1 + ID_BYTES for op in ops), "has an op that is gone without its hash")
    _check(sum(map(len, ops)) <= OPS_BYTES_MAX, f"has more than {OPS_BYTES_MAX} bytes of ops")
    header = decode_header(header_bytes)
    if len(ops) != header.n or root_of(ops) != header.root:
        raise RejectedSegment(f"{name_of(header.author, header.first, header.last)}: its ops are not those that its header signs")
    return Segment(header, header_bytes, signature, ops)


def check_signature(segment: Segment, key: bytes, verify: Verify) -> None:
    """Raises RejectedSegment unless the owner of `key` signed the header."""
    if not verify(key, "segment", segment.header_bytes, segment.signature):
        raise RejectedSegment(f"{segment}: the signature is not its author's")


class Tip(NamedTuple):
    """The end of a log: what the next segment must continue."""

    seq: int
    hash: bytes
    stamp: Stamp
    open_segments: int
    """Segments since the last commit flag."""


EMPTY = Tip(0, NO_HASH, Stamp(0, 0), 0)

Sign = Callable[[str, bytes], bytes]
"""(purpose, message) → signature; `SigningKey.sign`."""


def build_changeset(
    ops: Sequence[bytes],
    *,
    federation: FederationId,
    charter_version: int,
    author: AuthorId,
    tip: Tip,
    stamp: Stamp,
    deps: Sequence[Dep],
    sign: Sign,
) -> Iterator[Segment]:
    """Sign `ops` as one changeset that continues `tip`: the run of segments whose last one has the commit flag.

    All carry `deps` in the first segment only (the past of the others holds it), and stamps that grow by one logical step.
    """
    runs = list(_runs(ops))
    assert tip.open_segments == 0 and 0 < len(runs) <= CHANGESET_SEGMENTS_MAX, "a changeset has 1 to 256 segments"
    for index, run in enumerate(runs):
        last = index == len(runs) - 1
        header = Header(
            FORMAT,
            federation,
            charter_version,
            author,
            0,
            tip.seq + 1,
            len(run),
            tip.hash,
            stamp,
            tuple(sorted(deps)) if index == 0 else (),
            root_of(run),
            last,
        )
        raw = encode_header(header)
        segment = Segment(header, raw, sign("segment", raw), tuple(run))
        yield segment
        tip = Tip(header.last, segment.hash, stamp, 0)
        stamp = next_stamp(0, [stamp])


def changesets(ops: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut `ops` into as few changesets as the limits allow: one, but for a first publication of a million DIDs."""
    runs = list(_runs(ops))
    for start in range(0, len(runs), CHANGESET_SEGMENTS_MAX):
        yield [op for run in runs[start : start + CHANGESET_SEGMENTS_MAX] for op in run]


def _runs(ops: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut into runs that fit a segment."""
    start = size = 0
    for index, op in enumerate(ops):
        if index - start == OPS_MAX or size + len(op) > OPS_BYTES_MAX:
            yield ops[start:index]
            start, size = index, 0
        size += len(op)
    yield ops[start:]


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_dep(dep: Any) -> bool:
    return (
        type(dep) is tuple
        and len(dep) == 3
        and type(dep[0]) is bytes
        and len(dep[0]) == ID_BYTES
        and _is_int(dep[1], 1, SEQ_MAX)
        and type(dep[2]) is bytes
        and len(dep[2]) == ID_BYTES
    )


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise RejectedSegment(f"a segment {what}")
