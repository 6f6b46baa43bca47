"""A process that receives, applies, and publishes what its users write is killed again and again, at random moments.

After each death: the database is sound; every segment that was acknowledged is stored, and every transaction of a user that returned
is there whole; the logs are applied up to the end of a changeset, and the rows are exactly what the catalogue shows. At the end an
undisturbed process finishes, and everybody has the same rows; its own log says each thing once, and others take all of it.

`NSYNC_RANDOM_KILLS=5000 NSYNC_SEED=7 python -m pytest tests/bridge/test_random_kills.py -s --timeout 0` goes on for longer.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nsync.log.segment import decode_frame
from nsync.namespace.keys import Attachment, Did, Replica
from nsync.namespace.ops import decode_op
from nsync.rucio_bridge.rows import matches
from tests.support.federation import AUTHOR
from tests.support.instances import cycle, settle
from tests.support.nodes import damage, wait_until
from tests.support.victims import Ground, Lab, started

SEED = int(os.environ.get("NSYNC_SEED", "20260201"))
KILLS = {"sqlite": 25, "postgresql": 5}
ACTS_MAX = 5
DELAY_S_MAX = 0.1
"""It is killed so long after so many acts: amid the next one, or in the one after it."""
CYCLES = 8
"""Of three changesets of atlas; when they are all here, users go on writing."""


def live(lab: Lab, frames: Sequence[bytes], said: str, seed: int) -> None:
    """What a node and its users do, without end; what is acknowledged is put down in the file `said`."""
    rng, out = random.Random(seed), os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        act = rng.choice(("receive", "work", "write"))
        have = lab.segments(AUTHOR["atlas"])
        if act == "receive" and have < len(frames):
            some = frames[have : have + rng.randint(1, 3)]
            assert lab.bridge.receive(some, "atlas").rejected == ()
            os.write(out, f"stored {have + len(some)}\n".encode())
        elif act == "write":
            ((number,),) = lab.query("SELECT count(*) FROM dids WHERE scope = 'belle2'")  # so no name is used twice
            lab.publish_dataset("belle2", f"d{number}", files=2)
            os.write(out, f"written {number}\n".encode())
        else:
            lab.bridge.work(lab.now_ms)
            os.write(out, b"worked 0\n")


def acknowledged(said: Path) -> tuple[int, set[str]]:
    """How many segments, and which datasets."""
    lines = [line.split() for line in said.read_text().splitlines()]
    return max((int(n) for what, n in lines if what == "stored"), default=0), {f"d{n}" for what, n in lines if what == "written"}


def check(lab: Lab, said: Path, ends: set[int]) -> None:
    """`ends`: the last ops of the changesets of atlas."""
    if lab.engine.dialect.name == "sqlite":
        assert damage(lab.path) == []
    stored, written = acknowledged(said)
    assert lab.segments(AUTHOR["atlas"]) >= stored
    public = "SELECT name FROM dids_opendata WHERE scope = 'belle2' AND state = 'P'"
    assert {name for (name,) in lab.query(public)} >= written
    applied = "SELECT applied FROM nsync_branch WHERE author = :author AND applied > 0"
    assert {seq for (seq,) in lab.query(applied, author=AUTHOR["atlas"])} <= ends, "a changeset is applied whole or not at all"
    catalogue = {fact: entry for fact, entry in lab.catalogue().items() if about(fact) == "atlas"}
    rows = lab.written(list(catalogue))
    assert [fact for fact in catalogue if not matches(catalogue[fact], rows.get(fact))] == [], "rows are what the catalogue shows"
    names = {fact.name for fact in catalogue if isinstance(fact, Did)}
    assert {name for (name,) in lab.query("SELECT name FROM dids WHERE scope = 'atlas'")} == names
    assert lab.query("SELECT count(*) FROM nsync_branch WHERE author = :me AND applied <> last", me=lab.bridge.me.author) == [(0,)]


def about(fact: object) -> str:
    """The scope of `fact`."""
    if isinstance(fact, Replica):
        return fact.did.scope
    if isinstance(fact, Attachment):
        return fact.parent.scope
    return fact.scope if isinstance(fact, Did) else ""


def test_a_process_killed_at_random_moments(ground: Ground, tmp_path: Path) -> None:
    atlas, belle2, cms = ground.lab("atlas"), ground.lab("belle2"), ground.lab("cms")
    ends: set[int] = set()
    for lab in (atlas, belle2, cms):
        lab.join([lab.name])
        lab.add_scope(lab.name)
    for number in range(CYCLES):
        for _ in cycle(atlas, "atlas", number):
            atlas.now_ms += 1
            ends |= {one.last for one in atlas.bridge.work(atlas.now_ms).applied}
    frames, said, rng = atlas.frames(), tmp_path / "said", random.Random(SEED)
    said.touch()
    kills = int(os.environ.get("NSYNC_RANDOM_KILLS", KILLS[belle2.engine.dialect.name]))
    for number in range(kills):
        acts = said.read_text().count("\n") + rng.randint(0, ACTS_MAX)
        with started(belle2, live, frames, str(said), rng.randrange(1 << 32)):
            wait_until(lambda: said.read_text().count("\n") >= acts, lambda: f"{acts} acts")  # noqa: B023
            time.sleep(rng.uniform(0, DELAY_S_MAX))
        print(f"seed {SEED}, kill {number}: {acknowledged(said)[0]} stored, {len(acknowledged(said)[1])} written")
        check(belle2, said, ends)
        belle2.engine.dispose()
    stored, written = acknowledged(said)
    assert stored and written and belle2.rows()["contents"], "it did something of each meanwhile"

    settle([atlas, belle2, cms])
    check(belle2, said, ends)
    assert atlas.rows() == belle2.rows() == cms.rows()
    assert {row[1] for row in cms.rows()["dids"]} >= written
    statements = Counter(repr(said) for frame in belle2.log() for op in decode_frame(frame).ops for said in decode_op(op))
    assert [text for text, times in statements.items() if times > 1] == [], "nothing is said twice"
