"""A node that runs once ends when it has all that it can have, whatever a peer says, and however little comes in one round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import nsync.node
from nsync.config import Settings
from nsync.log.stored import Head
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store import intake
from nsync.store.database import writing
from nsync.store.log import SqlLog
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.server import Server
from tests.integration.test_notices import Withholding
from tests.integration.test_transport import on_a_loop
from tests.support.federation import KEYS
from tests.support.nodes import LOOPBACK, Federation, Site, applied

ROOM = 16
COUNT = 10 * ROOM + 5


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


class Boasting(Withholding):
    """Says of its own log that it is ever longer, and has nothing of it."""

    def __init__(self, author: bytes) -> None:
        self._author, self._asked = author, 0

    def heads(self) -> list[Head]:
        self._asked += 1
        return [Head(self._author, self._asked * 1_000_000, bytes(16))]


def settings(site: Site) -> Settings:
    me = site.federation.charter.by_name(site.name)
    assert me is not None
    return Settings(
        me=me,
        charter=site.federation.charter,
        charter_text=site.federation.charter_file.read_text(encoding="utf-8"),
        key=KEYS[site.name],
        host=LOOPBACK,
        port=site.federation.ports[site.name],
        source_address=None,
        shared_scopes=(),
        scope_map={},
        rse_expression="OpenData=True",
        polling=None,
        audit_interval_s=0.0,
        sleep_time_s=60.0,
        gossip_interval_s=5.0,
        lease_s=900.0,
        floor_interval_s=0.0,
        metrics=None,
        tls=None,
    )


async def no_room(_: Gossip) -> bool:
    return False


@on_a_loop
async def test_a_backlog_comes_whole_beside_a_peer_that_boasts(bed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes what there is room for, and no more, however fast it is applied."""
    monkeypatch.setattr(intake, "WAITING_SEGMENTS_MAX", ROOM)
    monkeypatch.setattr(Gossip, "_room", no_room)
    atlas, cms = bed.site("atlas"), bed.site("cms")
    with writing(atlas.engine) as connection:
        log = SqlLog(connection, bed.authority)
        for _ in range(COUNT):
            log.publish([ACKNOWLEDGE], atlas.author, KEYS["atlas"].sign, atlas.now_ms)
    served = atlas.serve()
    belle2 = bed.charter.by_name("belle2")
    assert belle2 is not None
    liar = Listener(Server(bed.charter, belle2, Boasting(belle2.author), None, lambda: None).app())
    await liar.start(LOOPBACK, bed.ports["belle2"])
    monkeypatch.setattr(nsync.node, "get_engine", lambda: cms.engine)
    reports = {report.peer: report for report in await nsync.node.Node(settings(cms)).run_once()}
    await liar.stop()
    assert reports["atlas"].pulled == COUNT and not reports["atlas"].error
    assert reports["belle2"].error
    assert applied(cms.path, atlas.author) == COUNT
    served.stop()
