"""Every order of publishing and delivering four changesets at three instances gives one state, and the right one."""

from __future__ import annotations

import random

import pytest

from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity
from nsync.namespace.ops import ACKNOWLEDGE, Assert, Retract, Statement, encode_op
from nsync.testing.interleavings import Explored, Explorer, Saying
from nsync.testing.workload import Workload

DATASET, FILE = Did("atlas.shared", "d1"), Did("atlas.shared", "f1")
INNER, OUTER = Did("atlas.shared", "c1"), Did("atlas.shared", "c2")
EDGE = Attachment(DATASET, FILE)
CLOSED, STATE, DOI = (Attribute(DATASET, field) for field in (keys.CLOSED, keys.OPENDATA, keys.DOI))
A_DATASET, A_CONTAINER = Identity(keys.DATASET), Identity(keys.CONTAINER)


def content(size: int) -> Identity:
    return Identity(keys.FILE, size, bytes([size] * 4), None)


def says(author: str, at_ms: int, *statements: Statement) -> Saying:
    """`author` publishes `statements`, an op each; none: an acknowledgement."""
    return Saying(author, tuple(encode_op([statement]) for statement in statements) or (ACKNOWLEDGE,), at_ms)


SCRIPTS = {
    "attached, detached by a guest and the home, attached again": [
        says("atlas", 0, Assert(DATASET, A_DATASET), Assert(FILE, content(1)), Assert(EDGE, True)),
        says("cms", 1000, Assert(EDGE, True), Retract(EDGE)),
        says("belle2", 2000, Assert(EDGE, True)),
        says("atlas", 3000, Retract(EDGE)),
    ],
    "closed by the home, reopened and filled by guests": [
        says("atlas", 0, Assert(DATASET, A_DATASET), Assert(FILE, content(1))),
        says("atlas", 500, Assert(CLOSED, True)),
        says("cms", 1000, Assert(EDGE, True)),
        says("belle2", 2000, Assert(CLOSED, False)),
    ],
    "two contents of one name, and clocks that lie": [
        says("cms", 5000, Assert(FILE, content(1))),
        says("belle2", -60_000, Assert(FILE, content(2))),
        says("atlas", 0),
        says("atlas", 1000, Retract(FILE)),
    ],
    "published by a guest, suspended by another, acknowledged": [
        says("cms", 0, Assert(DATASET, A_DATASET), Assert(STATE, keys.PUBLIC)),
        says("belle2", 1000, Assert(STATE, keys.SUSPENDED)),
        says("atlas", 2000),
        says("cms", 3000, Assert(STATE, keys.PUBLIC)),
    ],
    "a cycle of containers": [
        says("atlas", 0, Assert(INNER, A_CONTAINER), Assert(OUTER, A_CONTAINER)),
        says("cms", 1000, Assert(Attachment(OUTER, INNER), True)),
        says("belle2", 500, Assert(Attachment(INNER, OUTER), True)),
        says("atlas", 2000, Retract(Attachment(OUTER, INNER))),
    ],
    "one DOI for two": [
        says("atlas", 0, Assert(DATASET, A_DATASET), Assert(INNER, A_CONTAINER)),
        says("cms", 1000, Assert(DOI, "10.5072/ATLAS.1")),
        says("belle2", 900, Assert(Attribute(INNER, keys.DOI), "10.5072/ATLAS.1")),
        says("atlas", 2000),
    ],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_every_order_gives_one_state(script: list[Saying]) -> None:
    assert Explorer(script).run() == Explored(orders=1_182_720, states=2994, transitions=622)


@pytest.mark.parametrize("authors", [("atlas", "atlas", "cms"), ("atlas", "cms", "belle2"), ("cms", "cms", "belle2")])
def test_every_order_of_anything_gives_one_state(authors: tuple[str, ...]) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        workload = Workload(rng, ("atlas", "cms", "belle2"))
        script = [Saying(author, tuple(workload.changeset(author)), rng.randint(-5000, 5000)) for author in authors]
        assert Explorer(script).run().orders > 1000
