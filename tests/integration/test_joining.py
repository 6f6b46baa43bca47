"""A fourth instance joins three that go on publishing: admitted by an amendment, killed in the middle, resumed; then it retires (R5.1)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker

from nsync.auth.keys import verify
from nsync.authority import amendments
from nsync.authority.charter import author_id
from nsync.authority.effective import Authority
from nsync.testbed.layout import free_ports
from tests.integration.test_node import set_head
from tests.support.federation import NAMES, ROOTS
from tests.support.instances import engine_of
from tests.support.nodes import LOOPBACK, Federation, Process, Site, applied, ask, damage, nsync, stored, wait_until
from tests.support.played import Play, played

DATASETS, FILES = 6, 100
"""Of each of the three before the fourth comes: seconds of work for it."""


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def done(site: Site, *arguments: str | Path) -> str:
    finished = nsync(site, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


class Newcomer(Site):
    """An instance that no charter names when its database is made; its keys and entry are those that `nsync charter init` made."""

    def __init__(self, federation: Federation, name: str = "dune") -> None:
        self.name, self.federation, self.now_ms = name, federation, 1_700_000_000_000
        self.path = federation.directory / f"{name}.db"
        shutil.copyfile(federation.template, self.path)
        self.engine = engine_of(self.path)
        self.sessions = sessionmaker(bind=self.engine)
        self.home = federation.directory / f"{name}-home"
        federation.ports[name] = free_ports(1)[0]
        self.url = f"http://{LOOPBACK}:{federation.ports[name]}"
        self.options = {
            "instance": name,
            "charter": str(federation.charter_file),
            "key": str(self.home / "nsync.key"),
            "listen": f"{LOOPBACK}:{federation.ports[name]}",
            "shared_scopes": name,
            "allow_plain_http": "true",
            "gossip_interval": "0.5",
        }
        self.home.mkdir()
        files = ["--dir", str(self.home), "--url", self.url, "--scope", name]
        command = [sys.executable, "-m", "nsync", "charter", "init", "test", "--member", name.upper(), "--instance", name, *files]
        subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
        entry = json.loads((self.home / f"{name}.member.json").read_text())["instances"][0]
        self.author = author_id(bytes.fromhex(entry["key"]), bytes.fromhex(entry["incarnation"]))


def sign(site: Site, path: Path, *roots: Path) -> str:
    said = ""
    for root in roots:
        said = done(site, "charter", "sign", path, "--key", root)
    return said


def take_up(federation: Federation, path: Path, nodes: dict[Site, Process], version: int) -> None:
    """Put the charter in its place, and let running nodes read it."""
    os.replace(path, federation.charter_file)
    federation.charter = amendments.read(federation.charter_file.read_text(), verify).charter
    federation.authority = Authority(federation.charter)
    assert federation.charter.version == version
    for node in nodes.values():
        node.send(signal.SIGHUP)
    for site, node in nodes.items():
        text = f"version {version} of the charter is in force"
        wait_until(lambda: text in node.said(), lambda: f"{site.name} takes up the charter; it said {node.said()}")  # noqa: B023
        node.wait_for_ping()


class Publishing(threading.Thread):
    """Users of the three go on publishing meanwhile."""

    def __init__(self, sites: list[Site]) -> None:
        super().__init__()
        self._sites = sites
        self._ended = threading.Event()
        self.count = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ended.wait(0.3):
                site = self._sites[self.count % len(self._sites)]
                site.publish_dataset(site.name, f"late{self.count}", files=2)
                self.count += 1
        except Exception as error:
            self.error = error

    def end(self) -> int:
        self._ended.set()
        self.join(60)
        assert self.error is None, self.error
        return self.count


def reasons(site: Site) -> list[str]:
    """Why each peer fails."""
    return [record["reason"] for record in json.loads(nsync(site, "peer", "list", "--json").stdout)]


def settled(sites: list[Site], authors: list[bytes]) -> bool:
    return all(len({applied(site.path, author) for site in sites}) == 1 for author in authors) and not any(
        ask(site.path, "SELECT count(*) FROM nsync_outbox") != [(0,)] for site in sites
    )


def test_a_fourth_instance_joins_while_three_publish_and_retires(bed: Federation) -> None:
    three = [bed.site(name, [name]) for name in NAMES]
    authors = [site.author for site in three]
    for site in three:
        site.options["gossip_interval"] = "0.5"
        site.add_scope(site.name)
        for number in range(DATASETS):
            site.publish_dataset(site.name, f"d{number}", files=FILES)
    nodes = {site: site.start() for site in three}
    for node in nodes.values():
        node.wait_for_ping()
    roots = []
    for name in NAMES:
        ROOTS[name].save(bed.directory / f"{name}.root")
        roots.append(bed.directory / f"{name}.root")
    wait_until(lambda: min(applied(site.path, author) for site in three for author in authors) > 0, lambda: "the three begin")
    wait_until(lambda: settled(three, authors), lambda: "the three have the same")
    publishing = Publishing(three)
    publishing.start()

    # admitted
    atlas, dune = three[0], Newcomer(bed)
    draft = bed.directory / "next.json"
    shutil.copyfile(bed.charter_file, draft)
    done(atlas, "charter", "propose", draft, "--admit", dune.home / "dune.member.json", "--threshold", "3")
    sign(atlas, draft, *roots[:2])
    refused = nsync(dune, "charter", "join", draft, "--instance", "dune", "--key", dune.home / "nsync.key")
    assert refused.returncode == 1 and "names no such instance: dune" in refused.stderr
    assert "version 2 counts" in sign(atlas, draft, roots[2])
    early = nsync(dune, "charter", "join", draft, "--instance", "dune", "--key", dune.home / "nsync.key")
    assert early.returncode == 5 and "does not accept our requests" in early.stderr, "its peers do not know of the amendment yet"
    take_up(bed, draft, nodes, 2)
    joined = done(dune, "charter", "join", bed.charter_file, "--instance", "dune", "--key", dune.home / "nsync.key")
    assert joined.count("answers, and accepts this instance") == 3 and "[nsync]\ninstance = dune" in joined

    # killed in the middle, and resumed
    node = dune.start()
    node.wait_for_ping()
    wait_until(lambda: sum(applied(dune.path, author) for author in authors) > 0, lambda: f"it begins:\n{node.said()}")
    wait_until(lambda: ask(dune.path, "SELECT count(*) FROM nsync_peer WHERE heads IS NOT NULL") != [(0,)], node.said)
    node.kill()
    half = json.loads(nsync(dune, "status", "--json").stdout)
    print(f"killed at {half['progress']}, with {half['logs']}")
    assert 0 < half["progress"]["applied"] < half["progress"]["known"]
    assert damage(dune.path) == []
    before = stored(dune.path)
    node = dune.serve()
    assert before <= stored(dune.path)

    # it has all, and what it says is seen by all
    dune.add_scope("dune")
    dune.publish_dataset("dune", "first")
    count = publishing.end()
    assert count > 3
    four = [*three, dune]
    authors.append(dune.author)
    wait_until(lambda: applied(dune.path, dune.author) > 0, node.said)
    wait_until(lambda: settled(four, authors), lambda: f"all four have the same:\n{node.said()}")
    public = "SELECT scope, name FROM dids_opendata WHERE state = 'P'"
    shown = {tuple(sorted(ask(site.path, public))) for site in four}
    assert len(shown) == 1 and len(shown.pop()) == 3 * DATASETS + count + 1
    looked = json.loads(nsync(dune, "status", "--json").stdout)
    assert looked["charter"] == 2 and looked["progress"]["applied"] == looked["progress"]["known"], looked
    assert set(looked["homes"]) == {*NAMES, "dune"} and looked["homes"]["atlas"]["scopes"] == ["atlas"]
    wait_until(
        lambda: (
            {
                peer["state"]
                for home in json.loads(nsync(dune, "status", "--json").stdout)["homes"].values()
                for peer in home["peers"].values()
            }
            == {"same"}
        ),
        lambda: nsync(dune, "status").stdout,
    )

    # retired
    shutil.copyfile(bed.charter_file, draft)
    done(atlas, "charter", "retire", "dune", draft)
    assert "version 3 counts" in sign(atlas, draft, *roots)
    own_copy = bed.directory / "old.json"
    shutil.copyfile(bed.charter_file, own_copy)
    dune.options["charter"] = str(own_copy)
    take_up(bed, draft, nodes, 3)
    pinged = nsync(dune, "peer", "ping", "atlas")
    assert pinged.returncode == 5 and "atlas (" in pinged.stderr and "does not accept our requests" in pinged.stderr
    wait_until(lambda: all("does not accept our requests" in reason for reason in reasons(dune)), lambda: str(reasons(dune)))
    dune.publish_dataset("dune", "afterwards")
    atlas.publish_dataset("atlas", "last", files=1)
    wait_until(lambda: settled(three, authors[:3]) and len(ask(three[1].path, public)) == 3 * DATASETS + count + 2, lambda: "they go on")
    for site in three:
        names = set(ask(site.path, public))
        assert ("dune", "first") in names and ("dune", "afterwards") not in names, "its history stays"
        assert "dune" not in {record["name"] for record in json.loads(nsync(site, "peer", "list", "--json").stdout)}
    assert applied(dune.path, authors[0]) < applied(atlas.path, authors[0])
    for each in (*nodes.values(), node):
        each.stop()


def is_quiet(play: Play) -> bool:
    """Whether nothing is being sent."""
    before = len(play.served)
    time.sleep(4 * play.batch_s)
    return len(play.served) == before


def test_what_a_killed_newcomer_has_is_not_fetched_again(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms")
    cms.options["gossip_interval"] = "0.5"
    atlas.add_scope("atlas")
    for number in range(30):
        atlas.publish_dataset("atlas", f"d{number}", files=5)
        atlas.work()
    whole = len(atlas.frames())
    play = Play(batch_bytes=1, batch_s=0.25)
    with played(atlas, play):
        node = cms.start(failpoint="receive-after-commit:2")
        assert node.ended() == -signal.SIGKILL
        before = {(author, first) for author, first, _ in stored(cms.path)}
        assert 0 < len(before) < whole
        wait_until(lambda: is_quiet(play), lambda: "the stream to the killed one ends")
        play.served.clear()
        play.batch_s = 0.0
        node = cms.serve()
        wait_until(lambda: applied(cms.path, atlas.author) == applied(atlas.path, atlas.author), node.said)
    again = {(segment.author, segment.first) for segment in play.served}
    assert not again & before, "what is durable is not asked for again"
    assert len(again) == len(play.served) == whole - len(before), "and nothing twice"
    node.stop()


def test_a_node_that_cannot_take_up_a_charter_goes_on_with_what_it_has(bed: Federation) -> None:
    cms = bed.site("cms")
    node = cms.serve()
    good = bed.charter_file.read_text()
    bed.charter_file.write_text("{")
    node.send(signal.SIGHUP)
    wait_until(lambda: "SIGHUP changes nothing: charter is malformed" in node.said(), node.said)
    bed.charter_file.write_bytes(b"\xff\xfe")
    node.send(signal.SIGHUP)
    wait_until(lambda: "can't decode byte 0xff" in node.said(), node.said)
    assert "Traceback" not in node.said()
    bed.charter_file.write_text(good)
    node.send(signal.SIGHUP)
    wait_until(lambda: "starts anew, with version 1 of the charter" in node.said(), node.said)
    wait_until(lambda: node.said().count("listens on") == 2, node.said)
    node.stop()


def test_beside_an_unknown_rucio_the_charter_in_force_stays_so(bed: Federation) -> None:
    """A running node goes on with it, and so does one that is started; it is adopted once Rucio's schema is known (R7.7)."""
    cms = bed.site("cms")
    node = cms.serve()
    draft, roots = bed.directory / "next.json", []
    for name in NAMES:
        ROOTS[name].save(bed.directory / f"{name}.root")
        roots.append(bed.directory / f"{name}.root")
    shutil.copyfile(bed.charter_file, draft)
    done(cms, "charter", "propose", draft, "--threshold", "2")
    assert "version 2 counts" in sign(cms, draft, *roots)
    ((known,),) = ask(cms.path, "SELECT version_num FROM alembic_version")
    set_head(cms, "ffffffffffff")
    os.replace(draft, bed.charter_file)
    node.send(signal.SIGHUP)
    wait_until(lambda: "SIGHUP changes nothing: version 2 of the charter cannot be adopted yet" in node.said(), node.said)
    assert node.said().count("listens on") == 1
    node.stop()
    node = cms.serve()
    assert "version 1 of the charter stays in force: version 2 of the charter cannot be adopted yet: Rucio's schema" in node.said()
    assert json.loads(nsync(cms, "status", "--json").stdout)["charter"] == 1
    set_head(cms, known)
    node.send(signal.SIGHUP)
    wait_until(lambda: "version 2 of the charter is in force" in node.said(), node.said)
    node.stop()
