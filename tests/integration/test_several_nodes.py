"""Two nodes of one instance on one PostgreSQL database: everything takes effect once, in one log, whichever of them does it (R7.3)."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsync.namespace.ops import Assert, Retract, decode_op
from nsync.rucio_bridge import takeover
from nsync.store import serving
from nsync.store.log import SqlLog
from tests.support.federation import ROOTS
from tests.support.instances import common_rows
from tests.support.nodes import Federation, Process, Site, nsync, wait_until
from tests.support.postgres import Server
from tests.support.postgres_nodes import PostgresSite, places

pytestmark = pytest.mark.postgres

SOON_S = 15.0
"""What a node needs to pass something on, on a busy machine; less than the 30 s that a writer waits for its turn."""

ALARMING = ("\tERROR\t", "\tCRITICAL\t", "Traceback", "\tWARNING\t")
USUAL = ("could not be reached", "is decided: more than two thirds voted for it")
"""Peers are not there before they are started, or after they are stopped; and floors are told so."""


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


@pytest.fixture
def atlas(bed: Federation, postgres_server: Server, rucio_on_postgres: str) -> Iterator[list[PostgresSite]]:
    """The places of two nodes of atlas."""
    with postgres_server.database(template=rucio_on_postgres) as url:
        made = places(bed, url, "atlas", ["atlas"])
        made[0].add_scope("atlas")
        yield made
        bed.close()
        for place in made:
            place.close()


def names(site: Site, scope: str) -> set[str]:
    """The public datasets of `scope` that Rucio shows at `site`."""
    rows = site.query("SELECT name FROM dids_opendata WHERE CAST(state AS VARCHAR(10)) IN ('P', 'PUBLIC') AND scope = :scope", scope=scope)
    return {str(name) for (name,) in rows}


def publish(site: Site, name: str) -> None:
    site.publish_dataset(site.name, name, files=2)


def arrives(site: Site, scope: str, name: str, said: list[Process], seconds_max: float = SOON_S) -> float:
    began = time.monotonic()
    text = "\n".join(f"{process.log.name}:\n{process.said()}" for process in said)
    wait_until(lambda: name in names(site, scope), lambda: f"{scope}:{name} at {site.name}\n{text}", seconds_max)
    return time.monotonic() - began


def said_twice(site: Site) -> list[object]:
    """What the log of `site` says again though it said it last; and there must be one log, without branches."""
    with site.engine.connect() as connection:
        lines = SqlLog(connection, site.federation.authority).lines
        (branch,) = lines.of(site.author)
        ops = serving.ops_of(connection, branch.id, 1, branch.last)
    last: dict[object, object] = {}
    again = []
    for op in ops:
        for said in decode_op(op):
            if isinstance(said, (Assert, Retract)):
                if last.get(said.key) == said:
                    again.append(said)
                last[said.key] = said
    return again


def alarms(processes: list[Process]) -> list[str]:
    lines = [line for process in processes for line in process.said().splitlines() if any(sign in line for sign in ALARMING)]
    return [line for line in lines if not any(usual in line for usual in USUAL)]


def heartbeats(site: Site) -> set[int]:
    return {int(pid) for (pid,) in site.query("SELECT pid FROM heartbeats WHERE readable = 'rucio-nsync'")}


def test_two_nodes_at_work_at_once_do_everything_once(bed: Federation, atlas: list[PostgresSite]) -> None:
    cms, belle2 = bed.site("cms", ["cms"]), bed.site("belle2", ["belle2"])
    for site in (*atlas, cms, belle2):
        site.options.update(floor_interval="3", gossip_interval="0.5")
    cms.add_scope("cms")
    nodes = [site.start() for site in (*atlas, cms, belle2)]
    for node in nodes:
        node.wait_for_ping()
    wait_until(lambda: heartbeats(atlas[0]) == {nodes[0].pid, nodes[1].pid}, lambda: f"heartbeats: {heartbeats(atlas[0])}")
    count = 12
    for i in range(count):
        publish(atlas[0], f"a{i}")
        publish(cms, f"c{i}")
        time.sleep(0.3)
    for i in range(count):
        arrives(cms, "atlas", f"a{i}", nodes, 60)
        arrives(atlas[0], "cms", f"c{i}", nodes, 60)
        arrives(belle2, "atlas", f"a{i}", nodes, 60)
    wait_until(lambda: common_rows(atlas[0], cms, belle2), lambda: "equal rows")
    floors = "SELECT count(*) FROM nsync_floor"
    wait_until(lambda: atlas[0].query(floors)[0][0] >= 1, lambda: "floor 1")
    shares = [[node.said().count(what) for node in nodes[:2]] for what in ("\tpublished ", "\tapplied cms ")]
    print("published and applied by each node of atlas:", *shares)
    for node in nodes:
        node.stop()
    assert all(sum(share) >= 1 for share in shares) and all(map(sum, zip(*shares))), "both nodes had a part in it"
    for site in (atlas[0], cms):
        assert said_twice(site) == []
    votes = Counter(site_votes for site_votes in cms.query("SELECT number, author FROM nsync_vote"))
    assert not [vote for vote, times in votes.items() if times > 1]
    assert heartbeats(atlas[0]) == set(), "who stops in order takes its heartbeat along"
    assert alarms(nodes) == []


def publish_until(site: Site, ends: Callable[[], bool]) -> list[str]:
    """Publish dataset after dataset until the one node is where its failpoint is; which of the two nodes takes one is chance."""
    made: list[str] = []
    while not ends():
        assert len(made) < 100, "the failpoint was never passed"
        made.append(f"d{len(made)}")
        publish(site, made[-1])
        time.sleep(0.3)
    return made


def is_stopped(process: Process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_the_other_takes_over_from_one_that_is_killed(bed: Federation, atlas: list[PostgresSite]) -> None:
    cms = bed.site("cms")
    cms.options["gossip_interval"] = "0.5"
    there, other, dies = cms.serve(), atlas[1].serve(), atlas[0].start(failpoint="publish-signed")
    made = publish_until(atlas[0], lambda: not dies.running())
    assert dies.ended() == -signal.SIGKILL
    print(f"{len(made)} datasets; the last came after {arrives(cms, 'atlas', made[-1], [dies, other, there], 5.0):.1f} s")
    assert names(cms, "atlas") == set(made)
    for node in (other, there):
        node.stop()
    assert said_twice(atlas[0]) == [] and alarms([other, there]) == []


def test_the_other_takes_over_from_one_that_stops_amid_a_transaction(bed: Federation, atlas: list[PostgresSite]) -> None:
    """What the stopped one has signed and not committed never was: it goes on behind what the other has signed meanwhile."""
    cms = bed.site("cms")
    cms.options["gossip_interval"] = "0.5"
    there, other, stops = cms.serve(), atlas[1].serve(), atlas[0].start(failpoint="publish-signed:1:stop")
    made = publish_until(atlas[0], lambda: is_stopped(stops))
    took_s = arrives(cms, "atlas", made[-1], [stops, other, there], takeover.SILENT_S + takeover.LOOK_S + 5.0)
    print(f"{len(made)} datasets; the last came after {took_s:.1f} s")
    assert names(cms, "atlas") == set(made)
    assert "is silent for" in other.said() and "rolled back" not in other.said(), other.said()
    stops.send(signal.SIGCONT)
    wait_until(lambda: "rolled back" in stops.said(), lambda: f"it hears that its session has ended: {stops.said()}")
    other.stop()
    publish(atlas[0], "last")
    arrives(cms, "atlas", "last", [stops, there])
    for node in (stops, there):
        node.stop()
    assert said_twice(atlas[0]) == [] and common_rows(cms, atlas[0])


def test_a_charter_that_one_node_goes_over_to_is_followed_by_the_other(bed: Federation, atlas: list[PostgresSite]) -> None:
    """Its own file is still the old one: what it would read by that, it does not write."""
    old = atlas[1].home / "charter.json"
    shutil.copyfile(bed.charter_file, old)
    atlas[1].options["charter"] = str(old)
    one, other = (place.serve() for place in atlas)
    proposal = bed.directory / "next.json"
    shutil.copyfile(bed.charter_file, proposal)
    for command in (["propose", proposal, "--url", "cms", "http://127.0.0.1:1"], *(["sign", proposal, "--key", key] for key in roots(bed))):
        done = nsync(atlas[0], "charter", *command)
        assert done.returncode == 0, done.stderr
    proposal.replace(bed.charter_file)
    one.send(signal.SIGHUP)
    wait_until(lambda: "version 2 of the charter is in force" in one.said(), one.said)
    wait_until(lambda: "starts anew, with version 2 of the charter" in other.said(), other.said)
    one.stop()
    publish(atlas[0], "d1")
    wait_until(lambda: "published" in other.said().rpartition("with version 2")[2], other.said)
    other.stop()
    again = atlas[1].start()
    assert again.ended() == 1 and "version 2 is in force here, and never goes back" in again.said()


def roots(bed: Federation) -> list[Path]:
    for name, key in ROOTS.items():
        key.save(bed.directory / f"{name}.root")
    return [bed.directory / f"{name}.root" for name in ROOTS]
