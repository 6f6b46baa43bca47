"""Two nodes of one instance on one PostgreSQL database, in one process: whatever comes between what one reads and what it writes (R7.3)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from rucio.common.types import InternalAccount, InternalScope
from rucio.core.account import add_account
from rucio.core.scope import update_scope
from rucio.db.sqla.constants import AccountType
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from nsync.auth.keys import verify
from nsync.log import voting
from nsync.rucio_bridge import takeover
from nsync.rucio_bridge.bridge import Bridge
from nsync.rucio_bridge.rehearsal import rehearse
from nsync.store.notary import Notary, Opened
from tests.support.federation import CHARTER, KEYS
from tests.support.instances import Instance, common_rows
from tests.support.postgres import Server
from tests.support.rucio_postgres import PostgresInstance

pytestmark = pytest.mark.postgres

PROPOSER = voting.proposer(CHARTER, 1).name
OTHER = next(instance.name for instance in CHARTER.instances if instance.name != PROPOSER)


@pytest.fixture
def nodes(postgres_server: Server, rucio_on_postgres: str) -> Iterator[list[PostgresInstance]]:
    """Two of the instance that proposes the first floor; nothing of one is known to the other but by the database."""
    with postgres_server.database(template=rucio_on_postgres) as url:
        made = [PostgresInstance(url, PROPOSER, [PROPOSER]) for _ in range(2)]
        made[0].add_scope(PROPOSER)
        made[0].work()
        yield made
        for node in made:
            node.close()


class Interrupted:
    """The ground of a notary whose node pauses before each of its transactions."""

    def __init__(self, bridge: Bridge, meanwhile: Callable[[], object]) -> None:
        self._bridge, self._meanwhile = bridge, meanwhile

    engine: Engine = property(lambda self: self._bridge.engine)  # type: ignore[assignment]
    authority = property(lambda self: self._bridge.authority)
    me = property(lambda self: self._bridge.me)

    def opened(self, now_ms: int) -> AbstractContextManager[Opened]:
        self._meanwhile()
        return self._bridge.opened(now_ms)


def notary(node: PostgresInstance, ground: Any, now_ms: Callable[[], int]) -> Notary:
    return Notary(ground, KEYS[node.name].sign, verify, now_ms, lambda taken, sender: None, floor_interval_ms=1)


def test_what_the_other_node_signed_in_between_is_not_signed_again(nodes: list[PostgresInstance]) -> None:
    """Its own head, and its vote for a floor."""
    nodes[0].publish_dataset(PROPOSER, "d1")
    nodes[0].work()
    now_ms = nodes[0].now_ms
    quick = notary(nodes[1], nodes[1].bridge, lambda: now_ms + 1)
    steps, done = [quick.renew, quick.tend], []
    slow = notary(nodes[0], Interrupted(nodes[0].bridge, lambda: done.append(steps.pop(0)())), lambda: now_ms)
    tended = slow.tend()
    assert done[0] and done[1].voted is not None, "the other one had both to do"
    assert not tended.signed and tended.voted is None
    assert nodes[0].query("SELECT count(*) FROM nsync_vote") == nodes[0].query("SELECT count(*) FROM nsync_signed_head") == [(1,)]


def test_a_session_is_ended_when_its_node_is_silent_amid_a_transaction(
    nodes: list[PostgresInstance], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one whose node is heard elsewhere, nor one that waits outside a transaction, nor anybody else's."""
    monkeypatch.setattr(takeover, "SILENT_S", 1)
    engines = [create_engine(nodes[0].engine.url, connect_args={"application_name": name}) for name in ("rucio-nsync a b", "", "psql")]
    with ExitStack() as stack:
        held, heard, stranger, idle = (stack.enter_context(engines[i].connect()) for i in (0, 0, 2, 0))
        idle.execute(text("SELECT 1"))
        idle.commit()
        for connection in (held, stranger):
            connection.execute(text("LOCK TABLE nsync_kept IN SHARE ROW EXCLUSIVE MODE" if connection is held else "SELECT 1"))
        for _ in range(8):
            time.sleep(0.2)
            heard.execute(text("SELECT 1"))
            heard.commit()
            assert takeover.end_silent(nodes[0].engine) == 0
        time.sleep(1.2)
        assert takeover.end_silent(nodes[0].engine) == 1 and "the node a b is silent for 1 s" in caplog.text
        for connection in (idle, stranger):
            assert connection.execute(text("SELECT 1")).scalar() == 1
        with pytest.raises(OperationalError, match="terminating connection"):
            held.execute(text("SELECT 1"))
        nodes[0].add_did(PROPOSER, "d1")
        assert nodes[0].work() == 1
    for engine in engines:
        engine.dispose()


def test_a_rehearsal_leaves_nothing_behind(nodes: list[PostgresInstance]) -> None:
    nodes[0].add_did(PROPOSER, "d1")
    before = nodes[0].query("SELECT kind, a, b FROM nsync_outbox"), nodes[0].query("SELECT last FROM nsync_branch")
    found = rehearse(nodes[1].bridge, [PROPOSER], {}, nodes[1].now_ms)
    assert found.published == {"did": 1} and found.is_all and not found.parked
    assert (nodes[0].query("SELECT kind, a, b FROM nsync_outbox"), nodes[0].query("SELECT last FROM nsync_branch")) == before
    assert nodes[0].work() == 1


def test_two_at_work_at_once_make_one_log_and_write_every_row_once(
    nodes: list[PostgresInstance], template_database: Path, tmp_path: Path
) -> None:
    """Publishing, applying, trying again what is parked, and signing: by both, in any order, while users write."""
    other = Instance(template_database, tmp_path, OTHER, [OTHER], durable=False)
    other.add_scope(OTHER)
    for i in range(4):
        other.publish_dataset(OTHER, f"d{i}")
        other.work()
    nodes[0].add_scope(OTHER)  # what comes from there is parked, until it is that one's
    nodes[0].fetch(other)
    ended = threading.Event()

    def keep_at_it(node: PostgresInstance, seed: int) -> None:
        rng, signer = random.Random(seed), notary(node, node.bridge, lambda: node.now_ms)
        while not ended.is_set():
            node.now_ms += 1000
            rng.choice((node.work, node.work, lambda: node.bridge.retry_parked(node.now_ms), signer.tend))()

    threads = [threading.Thread(target=keep_at_it, args=(node, seed)) for seed, node in enumerate((*nodes, *nodes))]
    for thread in threads:
        thread.start()
    try:
        for i in range(6):
            nodes[0].publish_dataset(PROPOSER, f"e{i}")
        with nodes[0].session() as session:
            account = InternalAccount(f"nsync-{OTHER}")
            add_account(account, AccountType.SERVICE, None, session=session)
            update_scope(InternalScope(OTHER), account, session=session)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    nodes[1].work()
    nodes[1].bridge.retry_parked(nodes[1].now_ms)
    assert nodes[0].parked() == {} and nodes[0].query("SELECT count(*) FROM nsync_outbox") == [(0,)]
    author = nodes[0].bridge.me.author
    assert nodes[0].query("SELECT count(*) FROM nsync_branch WHERE author = :author", author=author) == [(1,)]
    other.now_ms = nodes[1].now_ms
    assert other.fetch(nodes[1]) == ()
    other.work()
    assert common_rows(other, nodes[0])
    said = nodes[0].query("SELECT raw, count(*) FROM nsync_op GROUP BY raw HAVING count(*) > 1 AND octet_length(raw) > 32")
    assert said == [], "what one has said is not said again by the other"
    other.close()
