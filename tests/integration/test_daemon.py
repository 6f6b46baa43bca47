"""The daemon's habits are those of Rucio's own: options, a rehearsal, heartbeats, logs."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from nsync import config
from nsync.cli import node as commands
from nsync.testbed.layout import free_ports
from tests.integration.test_node import RUCIO_NSYNC
from tests.support.nodes import LOOPBACK, Federation, Site, applied, ask, everything, nsync, reports, wait_until


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def heartbeats(site: Site) -> list[tuple[Any, ...]]:
    return ask(site.path, "SELECT pid, payload FROM heartbeats WHERE readable = 'rucio-nsync'")


def rehearsed(site: Site, *more: str) -> dict[str, Any]:
    process = site.start("--run-once", "--dry-run", "--json", *more, program=RUCIO_NSYNC)
    assert process.ended() == 0, process.said()
    found = reports(process)
    assert isinstance(found, dict)
    return found


def test_a_rehearsal_says_what_would_be_done_and_does_nothing(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms", ["cms"])
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.1")
    before = everything(atlas.path)
    found = rehearsed(atlas)
    assert everything(atlas.path) == before, "and no heartbeat, no peer, no charter"
    assert found["is_all"] and found["applied"] == {} and found["parked"] == []
    assert {kind: found["published"][kind] for kind in ("scope", "did", "attachment", "replica", "rse")} == {
        "scope": 1,
        "did": 4,
        "attachment": 3,
        "replica": 3,
        "rse": 1,
    }
    atlas.work()
    assert rehearsed(atlas)["published"] == {}, "what is said is not said again"

    cms.add_scope("atlas")
    cms.fetch(atlas)
    before = everything(cms.path)
    found = rehearsed(cms)
    assert everything(cms.path) == before and applied(cms.path, atlas.author) == 0
    assert list(found["changesets"]) == ["atlas"] and found["applied"]["did"] == 4
    reasons = dict(map(tuple, found["parked"]))
    assert "scope" in reasons["scope atlas"] and len(reasons) > 10, found["parked"]
    cms.work()
    assert {str(fact): reason for fact, reason in cms.parked().items()} == reasons, "as it then is"


def test_a_rehearsal_for_people(bed: Federation) -> None:
    atlas = bed.site("atlas", ["atlas"])
    atlas.add_scope("atlas")
    process = atlas.start("--dry-run")
    assert process.ended() == 0, process.said()
    assert process.printed().splitlines() == [
        "would publish: 1 scope",
        "would apply changesets: nothing",
        "would apply statements: nothing",
    ]
    assert process.said() == ""


def test_the_command_line_stands_above_the_configuration(bed: Federation) -> None:
    """`--bulk`: an audit of 8 rows in parts of 3 makes so many changesets. `--sleep-time`: what nobody tells of is looked for so often."""
    atlas = bed.site("atlas", ["atlas"])
    atlas.add_scope("atlas")
    atlas.options["bulk"] = "50000"
    with atlas.session() as session:
        for name in ("d1", "d2", "d3", "d4", "d5", "d6", "d7"):
            atlas.add_did("atlas", name)
        session.connection().exec_driver_sql("DELETE FROM nsync_outbox")
    once = atlas.start("--run-once", "--bulk", "3")
    assert once.ended() == 5, once.said()
    sizes = [n for (n,) in ask(atlas.path, "SELECT last - first + 1 FROM nsync_segment ORDER BY first")]
    assert len(sizes) >= 3, f"the parts of the audit: {sizes}"
    assert "everything that may be shared was looked at" in once.said()
    for wrong in (["--bulk", "0"], ["--bulk", "100001"], ["--sleep-time", "0"], ["--sleep-time", "86401"]):
        assert atlas.start(*wrong).ended() == 2
    atlas.options.update(audit_interval="2", sleep_time="3600")
    node = atlas.start("--sleep-time", "0.2")
    wait_until(lambda: node.said().count("everything that may be shared was looked at") >= 2, node.said)
    node.stop()
    assert (commands.SECONDS_MAX, commands.BULK_MAX) == (config.SECONDS_MAX, config.BULK_MAX)


def test_a_node_is_seen_in_rucios_heartbeats_until_it_stops(bed: Federation) -> None:
    atlas = bed.site("atlas")
    killed = atlas.serve()
    wait_until(lambda: heartbeats(atlas), killed.said)
    assert heartbeats(atlas) == [(killed.pid, f"atlas at {atlas.options['listen']}")]
    killed.kill()
    node = atlas.serve()
    wait_until(lambda: [pid for pid, _ in heartbeats(atlas)] == [node.pid], lambda: f"{heartbeats(atlas)}: the dead one is gone")
    node.stop(signal.SIGTERM)
    assert heartbeats(atlas) == []


def test_logs_are_as_rucios_configuration_says(bed: Federation) -> None:
    atlas = bed.site("atlas")
    atlas.common = {
        "logjson": "true",
        "logformat": " ".join(f"%%({field})s" for field in ("asctime", "name", "levelname", "process", "processName", "message")),
        "loglevel": "INFO",
    }
    node = atlas.serve()
    node.stop()
    lines = [json.loads(line) for line in node.said().splitlines()]
    listens = next(line for line in lines if "listens on" in line["message"])
    assert listens["log"] == {"level": "INFO", "logger": "nsync.node"}
    assert listens["process"] == {"pid": node.pid, "name": "rucio-nsync"} and listens["@timestamp"].endswith("Z")
    atlas.common = {"loglevel": "ERROR"}
    node = atlas.serve()
    node.stop()
    assert node.said() == ""
    atlas.common = {"loglevel": "LOUD"}
    wrong = atlas.start()
    assert wrong.ended() == 1 and "[common] loglevel = LOUD" in wrong.said()
    atlas.common = {"logformat": "%(asctime)s"}
    wrong = atlas.start()
    assert wrong.ended() == 1 and wrong.said().startswith("Error: [common] logformat") and "Traceback" not in wrong.said()


# ---- metrics


def test_what_the_bridge_does_is_counted_as_rucio_counts(bed: Federation) -> None:
    """By statsd and at Rucio's own port, and once each."""
    atlas = bed.site("atlas", ["atlas"])
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    (port,) = free_ports(1)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as statsd:
        statsd.bind((LOOPBACK, 0))
        statsd.settimeout(0.1)
        carbon = {"carbon_server": LOOPBACK, "carbon_port": str(statsd.getsockname()[1]), "user_scope": "here"}
        atlas.monitor = {**carbon, "enable_metrics": "true", "metrics_port": str(port)}
        node = atlas.serve()
        wait_until(lambda: applied(atlas.path, atlas.author), node.said)
        wait_until(lambda: "nsync_published_ops_total " in metrics_at(port), lambda: metrics_at(port))
        for command in (["serve", "--dry-run"], ["bridge", "rebuild"]):
            done = nsync(atlas, *command)
            assert done.returncode == 0, done.stderr
        second = atlas.start()
        assert second.ended() == 1 and second.said().startswith("Error: [monitor] metrics_port: Address already in use")
        node.stop()
        sent = b"".join(received(statsd)).decode()
    ops = ask(atlas.path, "SELECT count(*) FROM nsync_op")[0][0]
    counted = [line for line in sent.split("here.") if line.startswith("nsync.published_ops:")]
    assert sum(int(line.split(":")[1].split("|")[0]) for line in counted) == ops
    assert "nsync.applied_changesets.atlas:1|c" in sent and "nsync.write_lock_seconds:" in sent and "|ms" in sent


def metrics_at(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def received(socket_: socket.socket) -> Iterator[bytes]:
    with suppress(TimeoutError):
        while True:
            yield socket_.recv(65536)
