"""A changeset is visible whole or not at all, wherever a node is killed; nothing acknowledged is lost, nothing published is repeated.

A *survivor* is a database whose node is killed again and again: each case starts a node on what the one before left behind, so every
kill is followed by a restart, and the last ones by a restart that nobody disturbs. Beside it an *undisturbed* instance goes through
the same story in this process; the survivor must equal it, in every table, as it was after some whole number of changesets.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Optional

import pytest

import nsync
from nsync.errors import TransportError
from nsync.log import segment
from nsync.log.segment import decode_frame
from nsync.namespace.ops import decode_op
from nsync.testing.host import PLACES
from tests.support.instances import cycle
from tests.support.nodes import Federation, Peer, Process, Site, applied, ask, damage, everything, stored, wait_until

RECEIVING = {
    # name: the how manieth time it is passed
    "receive-verified": 2,
    "receive-before-commit": 2,
    "receive-after-commit": 2,
    "intake-headers-written": 2,
    "intake-ops-written": 3,
    "log-segment-stored": 4,
    "work-locked": 1,
    "apply-state-moved": 2,
    "log-slots-joined": 3,
    "log-head-advanced": 1,
    "log-catalogue-shown": 2,
    "rows-detached": 3,
    "rows-dids": 1,
    "rows-contents": 2,
    "rows-replicas": 1,
    "rows-closed": 3,
    "rows-open-data": 1,
    "rows-removed": 3,
    "apply-rows-written": 2,
    "work-before-commit": 1,
    "work-after-commit": 1,
}
PUBLISHING = ("publish-drained", "publish-signed", "log-head-advanced", "publish-logged", "work-before-commit", "work-after-commit")
RETRYING = "retry-before-commit"
ELSEWHERE = ("repair-before-commit", "repair-after-commit", "rebuild-derived")
"""Where test_repair and test_rebuild end a step."""

RANDOM_KILLS = 10
RANDOM_S_MAX = 0.6
"""From the first push to the kill: as long as the node is busy with what is pushed to it."""
SEED = 20_250_101

SEGMENT_OPS_MAX = 4
"""Instead of 4096 at the undisturbed publisher, so that a changeset of several segments is cheap."""

Dump = dict[str, list[tuple[Any, ...]]]

STORED = ("nsync_branch", "nsync_segment", "nsync_op")
"""Tables that hold also what is stored and not applied yet."""
APPLIED = {
    "heads": "SELECT author, first, applied, applied_hash, applied_stamp_ms, refused FROM nsync_branch WHERE applied_hash IS NOT NULL",
    "segments": "SELECT s.first, s.last, s.hash, s.header, s.signature FROM nsync_segment s "
    "JOIN nsync_branch b ON b.id = s.branch WHERE s.last <= b.applied ORDER BY s.first",
    "ops": "SELECT o.* FROM nsync_op o JOIN nsync_branch b ON b.id = o.branch WHERE o.seq <= b.applied ORDER BY o.seq",
}
LAST_SEGMENT = "SELECT max(s.last) FROM nsync_segment s WHERE s.branch = b.id"
LAST_OP = "SELECT max(o.seq) FROM nsync_op o WHERE o.branch = b.id"


def state(path: Path) -> Dump:
    """All tables, as if nothing were stored that is not applied."""
    return {**everything(path, without=STORED), **{name: ask(path, query) for name, query in APPLIED.items()}}


def test_every_failpoint_of_the_source_is_tried() -> None:
    source = Path(nsync.__file__).parent
    node = [path for path in source.rglob("*.py") if path.parent.name != "testing"]  # the simulator kills its own peers
    found = {name for path in node for name in re.findall(r'^\s+failpoint\("([^"]+)"\)$', path.read_text(), re.MULTILINE)}
    assert found <= {*RECEIVING, *PUBLISHING, RETRYING, *ELSEWHERE, *PLACES}
    assert found >= {*RECEIVING, *PUBLISHING, RETRYING, *ELSEWHERE}


# ---- the story


class Story:
    """What users write at one instance, and what a second one that nobody disturbs holds after each changeset."""

    def __init__(self, author: Site, reader: Site) -> None:
        self.author, self.reader = author, reader
        self.frames: list[bytes] = []
        self.states: dict[int, Dump] = {}
        """By the last seq that is applied: `state`."""
        self.last = 0
        self._cycles = 0
        author.add_scope(author.name)
        self._keep()

    def tell(self, cycles: int) -> None:
        """Three more changesets each: a public dataset; a container and a dataset that is open; changes and removals."""
        for _ in range(cycles):
            self._cycles += 1
            for _ in cycle(self.author, self.author.name, self._cycles):
                self._publish()

    def _publish(self) -> None:
        have = {self.author.author: self.author.bridge.locator(self.author.author)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segment, "OPS_MAX", SEGMENT_OPS_MAX)
            assert self.author.work() == 1
            frames = [s.frame for s in self.author.bridge.segments_after(have, 1 << 30)]
            assert self.reader.bridge.receive(frames, self.author.name).rejected == () and self.reader.work() == 1
        self.frames += frames
        self.last = applied(self.reader.path, self.author.author)
        self._keep()

    def _keep(self) -> None:
        self.states[self.last] = state(self.reader.path)


def without_audit(template: Path, directory: Path) -> Path:
    """A copy in which nothing is to be looked at: an audit goes on beside what is killed, and is killed in tests of its own."""
    shutil.copyfile(template, path := directory / "template.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM nsync_audit")
    return path


@pytest.fixture(scope="module")
def members(template_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    directory = tmp_path_factory.mktemp("kill")
    made = Federation(without_audit(template_database, directory), directory)
    yield made
    made.close()


@pytest.fixture(scope="module")
def story(members: Federation) -> Story:
    return Story(members.site("atlas", ["atlas"], "undisturbed"), members.site("cms", [], "undisturbed"))


@pytest.fixture
def bed(members: Federation) -> Iterator[Federation]:
    """`members`, whose processes end with the test."""
    yield members
    members.end_processes()


# ---- a receiver


class Receiver:
    """The survivor that receives, and the peer that pushes to it."""

    def __init__(self, bed: Federation, story: Story, directory: str) -> None:
        self.site = bed.site("cms", [], directory)
        self.story = story
        self.peer = Peer(bed, "atlas", "cms")
        self.pushed = 0
        """Frames that were acknowledged."""

    def applied(self) -> int:
        return applied(self.site.path, self.story.author.author)

    def push(self, at_once: int) -> None:
        """Push the rest of the story. Raises TransportError when the node dies over it."""
        while self.pushed < len(self.story.frames):
            frames = self.story.frames[self.pushed : self.pushed + at_once]
            assert self.peer.push(frames).rejected == ()
            self.pushed += len(frames)

    def push_until_killed(self, node: Process, at_once: int) -> None:
        with suppress(TransportError):
            self.push(at_once)
        assert node.ended() == -signal.SIGKILL, f"it was to be killed:\n{node.said()}"

    def takes_up(self, node: Optional[Process] = None) -> None:
        """What was stored before the kill takes effect, though nobody sends it again; unless `node` is killed over it."""
        ((last,),) = ask(self.site.path, "SELECT coalesce(max(last), 0) FROM nsync_segment")
        due = max(seq for seq in self.story.states if seq <= last)
        wait_until(lambda: self.applied() >= due or (node is not None and not node.running()), lambda: f"applied {self.applied()} of {due}")

    def check(self) -> None:
        """The database equals the undisturbed one after some whole changeset, in every table; and what was acknowledged is there."""
        path = self.site.path
        assert damage(path) == []
        assert self.peer.acknowledged <= stored(path)
        seq = self.applied()
        assert seq in self.story.states, f"the head is at {seq}, amid a changeset; they end at {sorted(self.story.states)}"
        assert state(path) == self.story.states[seq]
        assert ask(path, f"SELECT id FROM nsync_branch b WHERE last <> ({LAST_SEGMENT}) OR last <> ({LAST_OP})") == []

    def check_end(self) -> None:
        """Nothing tells it from the undisturbed one any more."""
        wait_until(lambda: self.applied() == self.story.last, lambda: f"applied {self.applied()} of {self.story.last}")
        self.check()
        assert everything(self.site.path) == everything(self.story.reader.path)


class Survivors:
    """The survivor of each role. One on which a check failed is not used again."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self.made = 0

    def take(self, role: str) -> Any:
        return self._held.pop(role, None)

    def give(self, role: str, survivor: Any) -> None:
        self._held[role] = survivor


@pytest.fixture(scope="module")
def survivors() -> Survivors:
    return Survivors()


def receiver(survivors: Survivors, bed: Federation, story: Story) -> Receiver:
    """The survivor of the case before, or a new one."""
    found = survivors.take("receiver")
    if found is None:
        survivors.made += 1
        found = Receiver(bed, story, f"receiver{survivors.made}")
    return found


@pytest.mark.parametrize("name", RECEIVING)
def test_a_receiver_killed_at(name: str, bed: Federation, story: Story, survivors: Survivors) -> None:
    survivor = receiver(survivors, bed, story)
    node = survivor.site.start(failpoint=f"{name}:{RECEIVING[name]}")
    story.tell(cycles=1)
    node.wait_for_ping(or_end=True)
    survivor.takes_up(node)
    survivor.push_until_killed(node, at_once=2)  # so that a push begins and ends amid a changeset
    survivor.check()
    survivors.give("receiver", survivor)


def test_a_receiver_killed_at_random_moments(bed: Federation, story: Story, survivors: Survivors) -> None:
    rng = random.Random(SEED)
    survivor = receiver(survivors, bed, story)
    for number in range(RANDOM_KILLS):
        node = survivor.site.start()
        story.tell(cycles=2)
        node.wait_for_ping()
        delay_s = rng.uniform(0, RANDOM_S_MAX)
        timer = threading.Timer(delay_s, node.kill)
        timer.start()
        survivor.push_until_killed(node, at_once=1)
        timer.join()
        done = f"{survivor.pushed} acknowledged, {len(stored(survivor.site.path))} stored, applied {survivor.applied()} of {story.last}"
        print(f"seed {SEED}, kill {number} after {delay_s:.3f} s: {done}")
        survivor.check()
    survivors.give("receiver", survivor)


def test_a_receiver_that_was_killed_catches_up(bed: Federation, story: Story, survivors: Survivors) -> None:
    survivor = receiver(survivors, bed, story)
    if not story.frames:
        story.tell(cycles=1)
    node = survivor.site.serve()
    survivor.takes_up()
    survivor.push(at_once=100)
    survivor.check_end()
    node.stop()
    survivor.check_end()


@pytest.mark.parametrize(
    "fault",
    [
        "DELETE FROM contents WHERE rowid = (SELECT max(rowid) FROM contents)",
        "DELETE FROM replicas WHERE rowid = (SELECT max(rowid) FROM replicas)",
        "DELETE FROM dids_opendata",
        "UPDATE dids SET is_open = 1 WHERE did_type = 'D'",
        "UPDATE nsync_branch SET applied = applied - 1",
        "DELETE FROM nsync_segment WHERE first = 1",
        "DELETE FROM nsync_op WHERE seq = (SELECT max(seq) FROM nsync_op)",
        "DELETE FROM nsync_about WHERE seq = 1",
        "DELETE FROM nsync_entry WHERE kind = 6",
    ],
)
def test_the_check_sees(fault: str, bed: Federation, story: Story) -> None:
    """Planted faults: what a node that is not atomic, or forgets, would leave behind."""
    story.tell(cycles=1)
    survivor = Receiver(bed, story, f"fault{zlib.crc32(fault.encode())}")
    with closing(sqlite3.connect(story.reader.path)) as source, closing(sqlite3.connect(survivor.site.path)) as target:
        source.backup(target)
    survivor.peer.acknowledged = stored(story.reader.path)
    survivor.check_end()
    with closing(sqlite3.connect(survivor.site.path)) as connection, connection:
        assert connection.execute(fault).rowcount > 0
    with pytest.raises(AssertionError):
        survivor.check()


def test_a_receiver_killed_as_what_was_parked_fits_at_last(bed: Federation, story: Story) -> None:
    """The operator gives away a private scope of the same name; the node that writes what waited for it is killed over that."""
    if not story.frames:
        story.tell(cycles=1)
    cms = bed.site("cms", [], "parked")
    cms.add_scope("atlas")
    commits = [decode_frame(frame).header.commit for frame in story.frames]
    first = story.frames[: commits.index(True) + 1]
    assert cms.bridge.receive(first, "atlas").rejected == () and cms.work() == 1
    assert cms.parked() and not any(cms.rows()[table] for table in ("dids", "contents", "replicas"))
    cms.close()
    with closing(sqlite3.connect(cms.path)) as connection, connection:
        connection.execute("DELETE FROM scopes")
    before = everything(cms.path)

    node = cms.start(failpoint=RETRYING)
    assert node.ended() == -signal.SIGKILL, f"it was to be killed:\n{node.said()}"
    assert damage(cms.path) == [] and everything(cms.path) == before

    node = cms.serve()
    seq = applied(cms.path, story.author.author)
    wait_until(lambda: not ask(cms.path, "SELECT key FROM nsync_parked"), node.said)
    node.stop()
    assert state(cms.path) == story.states[seq]


# ---- a publisher


class Publisher:
    """The survivor that publishes, and an undisturbed one with the same users."""

    def __init__(self, bed: Federation, directory: str) -> None:
        self.site, self.undisturbed = bed.site("belle2", ["belle2"], directory), bed.site("belle2", ["belle2"], f"{directory}-undisturbed")
        self.datasets = 0
        for site in (self.site, self.undisturbed):
            site.add_scope("belle2")

    def users_write(self) -> None:
        """Several transactions of Rucio, which the next drain publishes as one changeset."""
        self.datasets += 1
        for site in (self.site, self.undisturbed):
            site.publish_dataset("belle2", f"d{self.datasets}", doi=f"10.5072/BELLE2.{self.datasets}")
        assert self.undisturbed.work() == 1

    def waiting(self) -> list[tuple[Any, ...]]:
        return ask(self.site.path, "SELECT * FROM nsync_outbox")

    def check(self, before: set[tuple[bytes, int, bytes]], waiting: Sequence[tuple[Any, ...]]) -> None:
        """What waited is published whole, or waits as before."""
        assert damage(self.site.path) == []
        now = stored(self.site.path)
        assert before <= now
        if now == before:
            assert self.waiting() == waiting
        else:
            assert self.waiting() == []
            assert statements(self.site) == statements(self.undisturbed)
        assert ask(self.site.path, "SELECT count(*) FROM nsync_branch WHERE applied <> last") == [(0,)]
        assert ask(self.site.path, "SELECT coalesce(max(last), 0) FROM nsync_segment") == [(applied(self.site.path, self.site.author),)]


def statements(site: Site) -> list[str]:
    """All that the log of `site` says, each as often as it says it."""
    ops = ask(site.path, "SELECT o.raw FROM nsync_op o JOIN nsync_branch b ON b.id = o.branch WHERE b.author = ?", site.author)
    return sorted(repr(said) for (op,) in ops for said in decode_op(op))


def publisher(survivors: Survivors, bed: Federation) -> Publisher:
    """The survivor of the case before, or a new one."""
    found = survivors.take("publisher")
    if found is None:
        survivors.made += 1
        found = Publisher(bed, f"publisher{survivors.made}")
    return found


@pytest.mark.parametrize("name", PUBLISHING)
def test_a_publisher_killed_at(name: str, bed: Federation, survivors: Survivors) -> None:
    survivor = publisher(survivors, bed)
    survivor.users_write()
    before, waiting = stored(survivor.site.path), survivor.waiting()
    assert waiting
    node = survivor.site.start("--run-once", failpoint=name)
    assert node.ended() == -signal.SIGKILL, f"it was to be killed:\n{node.said()}"
    survivor.check(before, waiting)
    assert (stored(survivor.site.path) > before) == (name == "work-after-commit"), "COMMIT decides"
    survivors.give("publisher", survivor)


def test_a_publisher_that_was_killed_says_everything_once(bed: Federation, survivors: Survivors) -> None:
    survivor = publisher(survivors, bed)
    survivor.users_write()
    node = survivor.site.start("--run-once")
    assert node.ended() == 5, f"its peers are down, and nothing else is wrong:\n{node.said()}"
    assert survivor.waiting() == []
    assert statements(survivor.site) == statements(survivor.undisturbed)
    cms = bed.site("cms", [], f"peer-of-{survivor.site.path.parent.name}")
    assert cms.fetch(survivor.site) == (), "the chain is whole"
    cms.now_ms = time.time_ns() // 1_000_000  # the node stamped by the clock
    assert cms.work() >= 1
    assert {h.author: h.seq for h in cms.bridge.heads()} == {survivor.site.author: applied(cms.path, survivor.site.author)}
    assert cms.rows() == survivor.site.rows() == survivor.undisturbed.rows()
