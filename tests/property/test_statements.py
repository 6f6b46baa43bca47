"""Statements that do not count hide none that do, and cost those nothing that do (store.statements)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import event

from nsync.catalogue.reference import Reference
from nsync.clock import Stamp
from nsync.log.segment import EMPTY, FORMAT, Header, Segment, Tip, encode_header, root_of
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attribute, Did
from nsync.namespace.ops import Assert, Statement, encode_op
from tests.support.database import apply_all, contents, disposed, memory_engine, receive, reference_contents
from tests.support.federation import AUTHOR, CHARTER, KEYS, Writer


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


def queries_of_the_homes_word(void: int) -> int:
    """How many queries the home's first word about a DID takes after a stranger said something about it `void` times."""
    did = Did("atlas", "d1")
    saying: Statement = Assert(Attribute(did, "project"), "x")
    queries: list[str] = []
    with disposed(memory_engine()) as engine:
        segment, _ = signed("cms", EMPTY, [encode_op([saying])] * void)
        assert not receive(engine, [segment.frame]).rejected
        assert [applied.void for applied in apply_all(engine)] == [void]
        home = Writer("atlas")
        home.say(Assert(did, Identity("D")))
        receive(engine, [segment.frame for segment in home.log])
        event.listen(engine, "before_cursor_execute", lambda conn, cursor, statement, *_: queries.append(statement))
        apply_all(engine)
        count = len(queries)
        assert contents(engine)["slots"].keys() == {did}
    return count


def test_what_a_stranger_said_without_a_right_is_not_read_again() -> None:
    assert queries_of_the_homes_word(2048) == queries_of_the_homes_word(1)
