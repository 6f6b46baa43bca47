"""Where a charter says that a log has ended, and that place is not on the log that came: whole changesets up to there count (R4.6)."""

from __future__ import annotations

import random
from typing import Optional
from unittest import mock

import pytest

from nsync.log import segment as segments
from nsync.namespace import fields
from nsync.namespace.keys import Did
from nsync.namespace.ops import Assert, encode_op
from tests.property.stories import Story, Teller, _entry
from tests.property.test_stories import deliver, expected
from tests.support.database import disposed, memory_engine

SIZES = (2, 3, 4)
"""Ops of the changesets: they end at 2, 5 and 9."""


def story_that_ends(seq: int, segment_ops: int) -> Story:
    teller = Teller()
    with mock.patch.object(segments, "OPS_MAX", segment_ops):
        for index, size in enumerate(SIZES):
            dids = [Did("atlas", f"f{index}.{n}") for n in range(size)]
            teller._publish(index, "atlas", 0, [encode_op([Assert(did, fields.Identity(fields.FILE, 1, b"1234"))]) for did in dids])
    entry = teller._instance("atlas")
    life = {"key": entry["key"], "incarnation": entry["incarnation"], "final": [seq, "ab" * 16]}
    entry.update({**entry, **{what: _entry("atlas", 1)[what] for what in ("key", "incarnation")}, "past": [life]})
    teller._amend()
    return Story(tuple(teller.charters), tuple(teller.segments.values()), ())


@pytest.mark.parametrize("segment_ops", [1, 2, 4096])
@pytest.mark.parametrize(("seq", "shown"), [(1, 0), (2, 2), (4, 2), (5, 5), (8, 5), (9, 9), (12, 9)])
def test_whole_changesets_count(seq: int, shown: int, segment_ops: int) -> None:
    story = story_that_ends(seq, segment_ops)
    for seed in range(4):
        rng = random.Random(seed)
        with disposed(memory_engine()) as engine:
            found, wanted = deliver(engine, story, rng), expected(story, rng)
        assert found == wanted
        assert _files(found["catalogue"]) == shown, seed


def _files(catalogue: object) -> Optional[int]:
    return sum(isinstance(fact, Did) for fact in catalogue)  # type: ignore[attr-defined]
