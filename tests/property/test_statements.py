"""Statements that do not count hide none that do (store.statements)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nsync.catalogue.reference import Reference
from nsync.clock import Stamp
from nsync.log.segment import EMPTY, FORMAT, Header, Segment, Tip, encode_header, root_of
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attribute, Did
from nsync.namespace.ops import Assert, encode_op
from tests.support.database import apply_all, contents, disposed, memory_engine, receive, reference_contents
from tests.support.federation import AUTHOR, CHARTER, KEYS


def signed(name: str, tip: Tip, ops: Sequence[bytes]) -> tuple[Segment, Tip]:
    """What `name` says after `tip`, again and again if it likes."""
    stamp = Stamp(tip.stamp.ms + 1, 0)
    header = Header(FORMAT, CHARTER.federation, 1, AUTHOR[name], 0, tip.seq + 1, len(ops), tip.hash, stamp, (), root_of(ops), True)
    raw = encode_header(header)
    segment = Segment(header, raw, KEYS[name].sign("segment", raw), tuple(ops))
    return segment, Tip(header.last, segment.hash, stamp, 0)


@pytest.mark.parametrize("branches", [2, 9, 40])
def test_what_was_said_before_a_fork_is_found_behind_any_number_of_branches(branches: int) -> None:
    did = Did("cms", "d1")
    project = Attribute(did, "project")
    first, tip = signed("cms", EMPTY, [encode_op([Assert(did, Identity("D"))]), encode_op([Assert(project, "before")])])
    segments = [first]
    segments += [signed("cms", tip, [encode_op([Assert(project, str(number))])])[0] for number in range(branches)]
    with disposed(memory_engine()) as engine:
        assert not receive(engine, [segment.frame for segment in segments]).rejected
        apply_all(engine)
        reference = Reference(CHARTER)
        for segment in segments:
            reference.apply(segment)
        found, wanted = contents(engine), reference_contents(reference)
    assert found == wanted
    assert [slot.value for slot in found["slots"][project]] == ["before"]
