"""Real nodes that vote for floors by themselves, collect below them, and tell of a peer that holds a log back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import pytest
from aiohttp import web
from rucio.db.sqla.constants import OpenDataDIDState

from nsync.authority.charter import Instance as ChartedInstance
from nsync.authority.charter import Place
from nsync.log import notices
from nsync.log.floor import read_vote
from nsync.log.lease import sign_head
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.transport.listener import Listener
from nsync.transport.notices import NOTICES_BYTES_MAX, VERB, NoticeDoor, decode, encode
from nsync.transport.server import Server, Verb
from tests.support.federation import KEYS
from tests.support.nodes import LOOPBACK, Federation, Site, applied, ask, wait_until
from tests.support.notary import Notaries

FLOOR_S = "2"


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def votes(site: Site) -> dict[int, set[bytes]]:
    """By number, who has voted as far as `site` knows."""
    found: dict[int, set[bytes]] = {}
    for number, author in ask(site.path, "SELECT number, author FROM nsync_vote"):
        found.setdefault(number, set()).add(author)
    return found


def gone(site: Site) -> set[tuple[bytes, int]]:
    """The ops that were collected."""
    rows = ask(site.path, "SELECT b.author, o.seq, o.raw FROM nsync_op o JOIN nsync_branch b ON b.id = o.branch")
    return {(author, seq) for author, seq, raw in rows if raw[:1] == b"\xc1"}


def await_everywhere(sites: Collection[Site], sql: str, value: str) -> None:
    wait_until(lambda: all(ask(site.path, sql, value) for site in sites), lambda: f"{value} everywhere: {sql}")


def test_three_nodes_decide_floors_and_collect_below_them(bed: Federation) -> None:
    sites = [bed.site(name, [name]) for name in ("atlas", "cms", "belle2")]
    atlas, cms, _ = sites
    for site in sites:
        site.options.update(floor_interval=FLOOR_S, gossip_interval="0.5")
    nodes = [site.serve() for site in sites]
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    wait_until(lambda: all(applied(site.path, atlas.author) for site in sites), lambda: "atlas's dataset is everywhere")
    atlas.set_open_data("atlas", "d1", state=OpenDataDIDState.SUSPENDED)
    shown = "SELECT 1 FROM dids_opendata WHERE scope = 'atlas' AND state = ?"
    await_everywhere(sites, shown, "S")
    for project in ("first", "second"):  # each an op by itself, unlike what came with the dataset
        atlas.edit("UPDATE dids SET project = :project WHERE name = 'd1'", project=project)
        await_everywhere(sites, "SELECT 1 FROM dids WHERE name = 'd1' AND project = ?", project)
    wait_until(lambda: all(gone(site) for site in sites), lambda: f"something is collected: {[votes(site) for site in sites]}")
    wait_until(lambda: gone(atlas) == gone(cms), lambda: "both have collected all")

    assert {row[0] for row in ask(atlas.path, shown, "S")} == {1}
    assert atlas.rows() == cms.rows() == sites[2].rows()
    authors = {site.author for site in sites}
    for site in sites:
        assert votes(site)[1] == authors, "of three all must vote"
        floors = [read_vote(raw).floor for (raw,) in ask(site.path, "SELECT raw FROM nsync_vote WHERE number = 1")]
        assert len(set(floors)) == 1
    for site, node in zip(sites, nodes):
        assert "floor 1 is decided" in node.said(), site.name
        node.stop()
        assert "Traceback" not in node.said()


def test_a_floor_waits_for_who_is_down_and_nothing_else_does(bed: Federation) -> None:
    atlas, cms = bed.site("atlas", ["atlas"]), bed.site("cms", ["cms"])
    nodes = []
    for site in (atlas, cms):
        site.options.update(floor_interval=FLOOR_S, gossip_interval="0.5")
        nodes.append(site.serve())
    atlas.add_scope("atlas")
    atlas.publish_dataset("atlas", "d1")
    wait_until(lambda: len(votes(cms).get(1, ())) == 2, lambda: f"both have voted: {votes(cms)}")
    atlas.publish_dataset("atlas", "d2")
    wait_until(lambda: atlas.rows() == cms.rows() and len(cms.rows()["dids_opendata"]) == 2, lambda: "what users do goes on")
    assert set(votes(cms)) == {1} and not gone(cms), "two of three decide nothing"
    for node in nodes:
        node.stop()


class Withholding:
    """The log of a peer that says it has nothing, whatever it is given (transport.ports.SegmentLog)."""

    def heads(self) -> list[Head]:
        return []

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return []

    def locator(self, author: bytes) -> list[Place]:
        return []

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        return []

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        return Receipt(0, ())


class AtOnce(Executor):
    """Does it here and now: a database in memory belongs to the thread that made it."""

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(*args, **kwargs))
        return done


@contextmanager
def served(bed: Federation, name: str, told: notices.Notice) -> Iterator[None]:
    """Play `name`, with nothing but the notice `told`."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = loop.create_future()
    me = bed.charter.by_name(name)
    assert me is not None

    async def serve() -> None:
        held = Notaries(bed.authority, name, KEYS[name].sign, time.time_ns() // 1_000_000)
        held.notary.take([told], "")
        door = NoticeDoor(held.notary, AtOnce(), lambda: None)

        async def answer(_: web.Request, caller: ChartedInstance, body: bytes) -> web.StreamResponse:
            return web.Response(body=encode(await door.answer(decode(body), caller.name)))

        server = Server(bed.charter, me, Withholding(), None, lambda: None, verbs=[Verb(VERB, NOTICES_BYTES_MAX, answer)], notices=door)
        listener = Listener(server.app())
        await listener.start(LOOPBACK, bed.ports[name])
        ready.set()
        await stop
        await listener.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set_result, None)
        thread.join(30)
        loop.close()


def test_a_peer_that_holds_a_log_back_raises_the_alarm(bed: Federation) -> None:
    """cms has of belle2 what it says of itself, and nothing else; belle2 is not to be reached."""
    belle2, atlas = bed.charter.by_name("belle2"), bed.site("atlas", ["atlas"])
    assert belle2 is not None
    said = sign_head(bed.charter.federation, belle2.author, Place(7, b"h" * 16), time.time_ns() // 1_000_000, KEYS["belle2"].sign)
    atlas.options.update(lease="2", gossip_interval="0.5")
    with served(bed, "cms", notices.head_notice(said)):
        node = atlas.serve()
        silent = "belle2: it has not said for longer than the lease"
        alarm = "peer cms: it has the log of belle2 up to 0, though belle2 was at 7"
        wait_until(lambda: silent in node.said() and alarm in node.said(), node.said)
        kept = "SELECT value FROM nsync_kept WHERE name = 'alarms'"
        wait_until(lambda: any(alarm in value.decode() for (value,) in ask(atlas.path, kept)), lambda: "it is there for the status")
        node.stop()
