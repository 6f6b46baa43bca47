"""Repair below a floor: what is missing comes from an honest peer, and nothing wrong from a lying one."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from nsync.auth.keys import verify
from nsync.authority.documents import load
from nsync.authority.effective import Authority
from nsync.errors import ProtocolError
from nsync.failpoints import watched
from nsync.log.repair import BITMAP_BYTES
from nsync.log.segment import gone
from nsync.store import schema
from nsync.store.database import writing
from nsync.store.log import SqlLog
from nsync.store.repair import found_below
from nsync.testbed.layout import free_ports
from nsync.transport import repair
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.server import Server
from tests.support.below import Below, agreed, history, honest, run, without
from tests.support.database import contents
from tests.support.federation import KEYS, NAMES, charter_document


def says(one: Below) -> Any:
    with one.engine.connect() as connection:
        return found_below(SqlLog(connection, one.authority))


def stored(one: Below) -> Any:
    """Contents, and what stands in each place."""
    with one.engine.connect() as connection:
        log = SqlLog(connection, one.authority)
        ops = {author: log.stored_ops(author, until) for author, until in log.lines.floors()[-1].items()}
    return contents(one.engine, one.authority), ops


def federation(seed: int, share: float = 0.3) -> tuple[Below, Below, Below, int]:
    """One with everything, one that got it from there without some of what is live, one that was never compacted so far; how many."""
    rng = random.Random(seed)
    segments = history(rng)
    floor = agreed(segments)
    whole = Below("atlas", segments, floor)
    lacking, count = without(whole.segments(), rng, share)
    assert count
    return whole, Below("cms", lacking, floor), Below("belle2", whole.segments(), floor), count


@pytest.mark.parametrize("seed", range(8))
def test_what_is_missing_comes_from_an_honest_peer(seed: int) -> None:
    whole, lacking, newcomer, count = federation(seed)
    assert whole.repairs.damage() is None and says(whole) is None
    assert newcomer.repairs.damage() is None, "who gets all that is live from one who is compacted lacks nothing"
    assert stored(newcomer) == stored(whole)
    assert stored(lacking) != stored(whole)
    found, asked = run(lacking.repairs, honest(whole.repairs))
    assert found is not None and found.mended == count and asked == [repair.BLOCKS, repair.BITMAPS, repair.OPS]
    assert stored(lacking) == stored(whole)
    assert lacking.repairs.damage() is None and says(lacking) is None
    assert lacking.store(*whole.segments()) is None and lacking.compact() == 0


class PowerCut(Exception):
    """What ends a step where a power cut would."""


@pytest.mark.parametrize("place", ["repair-before-commit", "repair-after-commit"])
def test_repair_goes_on_after_it_ended_anywhere(place: str) -> None:
    whole, lacking, _, count = federation(4)
    before = stored(lacking)

    def cut(name: str) -> None:
        if name == place:
            raise PowerCut

    with pytest.raises(PowerCut), watched(cut):
        run(lacking.repairs, honest(whole.repairs))
    assert (stored(lacking) == before) == (place == "repair-before-commit")
    run(lacking.repairs, honest(whole.repairs))
    assert stored(lacking) == stored(whole) and count


def test_an_instance_says_what_differs_until_nothing_does() -> None:
    whole, lacking, _, _ = federation(1)
    assert says(lacking) is None, "nobody has looked"
    assert lacking.repairs.damage() is not None
    assert "below floor 1" in says(lacking) and "no peer could be asked yet" in says(lacking)
    run(lacking.repairs, honest(lacking.repairs), "itself")
    assert "itself has the same" in says(lacking)
    run(lacking.repairs, honest(whole.repairs))
    assert says(lacking) is None


def test_ops_that_were_lost_where_they_stood_come_back() -> None:
    """A damaged database: the index still has them."""
    whole, _, other, _ = federation(2)
    before = stored(other)
    with writing(other.engine) as connection:
        for branch, seq, raw in connection.execute(schema.op.select().with_only_columns(*list(schema.op.c)[:2], schema.op.c.raw)).all():
            if seq % 3 == 0:
                at = (schema.op.c.branch == branch, schema.op.c.seq == seq)
                connection.execute(update(schema.op).where(*at).values(raw=gone(raw)))
        connection.execute(schema.block.delete())
        connection.execute(schema.kept.delete().where(schema.kept.c.name == "below the floor"))
    assert run(other.repairs, honest(whole.repairs))[0] is not None
    assert stored(other) == before


def test_a_grant_that_was_missing_gives_back_what_hangs_on_it() -> None:
    rng = random.Random(5)
    segments = history(rng)
    floor = agreed(segments)
    whole = Below("atlas", segments, floor)
    lacking = [s._replace(ops=tuple(gone(op) if op[1:2] == b"\x03" else op for op in s.ops)) for s in whole.segments()]
    victim = Below("cms", lacking, floor)
    run(victim.repairs, honest(whole.repairs))
    assert stored(victim) == stored(whole)


def test_who_lacks_something_proposes_no_floor() -> None:
    """Nobody could vote for it, and the number would wait for ever."""
    whole, lacking, _, _ = federation(8)
    lacking.publish()
    lacking.now_ms += 10_000
    assert lacking.notary.tend().voted is None
    run(lacking.repairs, honest(whole.repairs))
    lacking.now_ms += 10_000
    voted = lacking.notary.tend().voted
    assert voted is not None and voted.number == 2


def test_who_goes_by_another_floor_cannot_tell() -> None:
    whole, lacking, _, _ = federation(3)
    damage = lacking.repairs.damage()
    assert damage is not None
    for verb in (repair.BITMAPS, repair.OPS):
        assert honest(whole.repairs)(verb, repair.encode_places(repair.Places(damage.floor + 1, (0,)))) == b""
    assert honest(whole.repairs)(repair.BLOCKS, repair.encode_first(damage.floor + 1, 0)) == b""
    found, _ = run(lacking.repairs, lambda verb, body: b"")
    assert found is not None and found.differing is None


class Liar:
    """A peer that answers something else to one kind of question."""

    def __init__(self, log: Any, verb: str, lie: Any) -> None:
        self._honest, self._verb, self._lie = honest(log), verb, lie

    def __call__(self, verb: str, body: bytes) -> bytes:
        said = self._honest(verb, body)
        return self._lie(said, body) if verb == self._verb else said


def _other_digests(said: bytes, body: bytes) -> bytes:
    return repair.encode_digests([b"12345678"] * len(repair.decode_digests(said, 3) or ()))


def _all_live(said: bytes, body: bytes) -> bytes:
    return repair.encode_bitmaps([b"\xff" * BITMAP_BYTES] * len(repair.decode_places(body).numbers))


def _nothing_live(said: bytes, body: bytes) -> bytes:
    return repair.encode_bitmaps([bytes(BITMAP_BYTES)] * len(repair.decode_places(body).numbers))


def _rotated(said: bytes, body: bytes) -> bytes:
    ops = repair.decode_ops(said, 8192) or []
    return repair.encode_ops(ops[1:] + ops[:1])


def _hashes(said: bytes, body: bytes) -> bytes:
    return repair.encode_ops(map(gone, repair.decode_ops(said, 8192) or []))


def _nothing(said: bytes, body: bytes) -> bytes:
    return repair.encode_ops([b""] * len(repair.decode_places(body).numbers))


LIES = {
    "other digests": (repair.BLOCKS, _other_digests),
    "too few digests": (repair.BLOCKS, lambda said, body: repair.encode_digests([])),
    "all is live": (repair.BITMAPS, _all_live),
    "nothing is live": (repair.BITMAPS, _nothing_live),
    "no zstd": (repair.BITMAPS, lambda said, body: b"bitmaps"),
    "others' ops": (repair.OPS, _rotated),
    "hashes for ops": (repair.OPS, _hashes),
    "empty ops": (repair.OPS, _nothing),
    "made-up ops": (repair.OPS, lambda said, body: repair.encode_ops([b"\x91\x02"] * len(repair.decode_places(body).numbers))),
}


def test_an_op_that_was_made_up_is_refused() -> None:
    whole, lacking, _, _ = federation(6)
    before = stored(lacking)
    refused = ""
    try:
        run(lacking.repairs, Liar(whole.repairs, *LIES["made-up ops"]), "the liar")
    except ProtocolError as error:
        refused = str(error)
    assert "its hash is not the one that stands in its place" in refused
    assert stored(lacking) == before


@pytest.mark.parametrize("lie", LIES)
def test_nothing_wrong_comes_from_a_lying_peer(lie: str) -> None:
    whole, lacking, _, _ = federation(4)
    before, (_, right) = stored(lacking), stored(whole)
    try:
        run(lacking.repairs, Liar(whole.repairs, *LIES[lie]), "the liar")
    except ProtocolError:
        assert lie != "nothing is live"
    after = stored(lacking)
    assert {author: [op[:2] for op in ops] for author, ops in after[1].items()} == {a: [op[:2] for op in ops] for a, ops in right.items()}
    if lie not in ("other digests",):
        assert after == before, "nothing came, and nothing went"
    run(lacking.repairs, honest(whole.repairs))
    assert stored(lacking) == stored(whole), "the honest one still repairs"
    assert lacking.repairs.damage() is None


# ---- the same over real sockets


async def _repaired(whole: Below, lacking: Below) -> list[str]:
    """What the exchange of `lacking` with `whole` complained of."""
    charter = whole.authority.charter
    with ThreadPoolExecutor(2) as executor:
        gossip = {
            one.name: Gossip(
                charter, one.me, KEYS[one.name], one, executor, random.Random(1), lambda: None, notices=one.notary, repairs=one.repairs
            )
            for one in (whole, lacking)
        }
        door = gossip[whole.name]
        server = Server(charter, whole.me, whole, executor, door.received, verbs=door.verbs(), meters=door.meters, notices=door.door)
        listener = Listener(server.app())
        await listener.start("127.0.0.1", int(whole.me.url.rsplit(":", 1)[1]))
        try:
            reports = await asyncio.wait_for(gossip[lacking.name].sync_once(), 60)
        finally:
            await listener.stop()
    return [report.error for report in reports if report.peer == whole.name]


def test_an_exchange_over_sockets_repairs(tmp_path: Path) -> None:
    ports = dict(zip(NAMES, free_ports(3)))
    document = charter_document({name: f"http://127.0.0.1:{port}" for name, port in ports.items()})
    authority = Authority(load(document, verify))
    rng = random.Random(7)
    segments = history(rng, charter=authority.charter)
    floor = agreed(segments, authority=authority)
    whole = Below("atlas", segments, floor, tmp_path / "whole.db", authority)
    lacking, count = without(whole.segments(), rng, 0.3)
    victim = Below("cms", lacking, floor, tmp_path / "victim.db", authority)
    assert count and stored(victim) != stored(whole)
    assert asyncio.run(_repaired(whole, victim)) == [""]
    assert stored(victim) == stored(whole)
    assert says(victim) is None
