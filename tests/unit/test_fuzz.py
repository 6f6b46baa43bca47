"""The decoders of the wire over whatever comes (R4.2): no error but RejectedSegment, one form of each value, little memory.

Run twice: with msgpack's C extension, and in a process of its own with the pure Python one, which PyPy and some
platforms have. `python -m tests.fuzz SECONDS` goes on for as long as you like.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.log.segment import FRAME_BYTES_MAX
from nsync.namespace import codec, fields
from tests.conformance import make
from tests.fuzz import oracle, wire
from tests.fuzz.targets import PEAK_BYTES_MAX, TARGETS, peak_bytes

FIELDS = [field for _, field in fields._FIELDS] + ["json.x", "later"]
_OPS = [msgpack.unpackb(raw, use_list=False) for raw in wire.OPS]
_TREES = sorted({op for op in _OPS if op[0] != 1} | {(1, said) for op in _OPS if op[0] == 1 for said in op[1:]}, key=repr)
"""Every statement of the vectors in an op of its own, and the ops of other kinds."""
PURE = bool(os.environ.get("MSGPACK_PUREPYTHON"))


@pytest.mark.parametrize("what", TARGETS)
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_decodes_encodes_to_the_same_bytes_and_the_rest_is_refused(what: str, data: st.DataObject) -> None:
    target = TARGETS[what]
    target.check(data.draw(wire.hostile(target.good)))


@pytest.mark.parametrize("part", range(8))
def test_odd_values_in_every_place_of_every_op(part: int) -> None:
    for tree in _TREES[part::8]:
        for place in wire.places(tree):
            for odd in wire.ODD:
                TARGETS["op"].check(wire.pack(wire.put(tree, place, odd), iter(())))


@pytest.mark.parametrize("field", FIELDS)
def test_odd_values_of_every_field(field: str) -> None:
    for fact in ((1, "a"), (2, "a", "b"), (5, "a", "b"), (6, "a", "b", "c", "d")):
        for odd in wire.ODD:
            TARGETS["op"].check(wire.pack((1, ((7, field, *fact), odd)), iter(())))


@pytest.mark.parametrize("what", TARGETS)
@pytest.mark.parametrize("raw", wire.BOMBS.values(), ids=wire.BOMBS.keys())
def test_a_bomb_costs_little_memory(what: str, raw: bytes) -> None:
    TARGETS[what].check(raw)
    assert peak_bytes(TARGETS[what].decode, raw) < PEAK_BYTES_MAX[what]


def test_the_greatest_frame_costs_a_few_times_its_size() -> None:
    segment = make.first_of_cms()
    frame = codec.encode((segment.header_bytes, segment.signature, (bytes(256),) * 4096))
    assert peak_bytes(TARGETS["frame"].decode, frame) < 4 * len(frame)
    arrays = b"\x93\xc4\x00\xc4\x00\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x91\xc0" * 256) * 256
    assert len(arrays) < FRAME_BYTES_MAX and peak_bytes(TARGETS["frame"].decode, arrays) < 60 * len(arrays)


def test_the_oracle_knows_the_vectors() -> None:
    assert all(map(oracle.is_op, wire.OPS))
    assert not any(oracle.is_op(raw) for raw, _ in make.refused_ops().values())


@pytest.mark.skipif(PURE, reason="this is that process")
def test_all_of_this_and_the_vectors_without_the_c_extension() -> None:
    root = Path(__file__).parents[2]
    paths = ["tests/unit/test_fuzz.py", "tests/unit/test_codec.py", "tests/conformance"]
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", *paths]
    run = subprocess.run(command, cwd=root, env={**os.environ, "MSGPACK_PUREPYTHON": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_this_is_the_msgpack_that_was_asked_for() -> None:
    assert (msgpack.Packer.__module__ == "msgpack.fallback") == PURE
