"""`nsync peer`: how each peer fares, as the node that runs beside this command puts it down; and what an operator can do about it.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nsync.authority.charter import Instance
from nsync.authority.effective import Authority
from nsync.cli.here import settings_in_force
from nsync.cli.output import add_row, as_json, fail
from nsync.errors import NotAuthorised, NsyncError
from nsync.log.stored import Head, PeerRecord
from nsync.store import peers
from nsync.store.database import writing
from nsync.store.log import SqlLog
from nsync.transport import session
from nsync.transport.client import PeerClient, open_session
from nsync.transport.peers import SIGN_AHEAD_MS_MAX, Meter
from nsync.transport.times import monotonic_ms, wall_ms

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from nsync.config import Settings

EXIT_UNREACHABLE = 5


class Here(NamedTuple):
    """This instance, as its configuration and database have it."""

    settings: Settings
    engine: Engine

    @property
    def peers(self) -> dict[str, Instance]:
        """Everybody else who has not retired."""
        return {i.name: i for i in self.settings.charter.instances if i.name != self.settings.me.name and i.retired is None}

    def peer(self, name: str) -> Instance:
        """The peer called `name`, or the end of the command."""
        if name not in self.peers:
            fail(f"the charter names no peer {name!r}; it names {', '.join(self.peers) or 'none'}")
        return self.peers[name]

    def records(self) -> dict[str, PeerRecord]:
        """What the node put down last of each peer."""
        with self.engine.connect() as connection:
            kept = {record.name: record for record in peers.load(connection)}
        return {name: kept.get(name, PeerRecord(name)) for name in self.peers}


def here() -> Here:
    """Read configuration and database. Raises ConfigError."""
    settings = settings_in_force(is_member=False)
    from nsync.rucio_bridge.engine import get_engine

    return Here(settings, get_engine())


@click.group()
def peer() -> None:
    """Show how the peers of this instance fare; try one, or end its back-off."""


@peer.command("list")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def list_(json_: bool) -> None:
    """List all peers: last answer, round trip, clock, bytes, and why one fails.

    As the node put it down last: at most 30 s ago, unless a peer began to fail since. Exit codes: 0 all are well, 1 failed,
    5 some peer fails, or was never asked.
    """
    found, now_ms = here().records(), wall_ms()
    if json_:
        as_json([_json(record) for record in found.values()])
    else:
        table = Table("peer", "last answer", "round trip", "clock", "in", "out", "", box=SIMPLE)
        for record in found.values():
            add_row(table, *_row(record, now_ms), style="red" if record.failures else None)
        Console().print(table)
        if any(record.failures for record in found.values()):
            click.echo("'nsync peer show NAME' has all of it; 'nsync peer ping NAME' tries it; 'nsync peer reset NAME' ends a back-off")
    if any(record.failures or record.contact_ms is None for record in found.values()):
        raise SystemExit(EXIT_UNREACHABLE)


@peer.command()
@click.argument("name")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def show(name: str, json_: bool) -> None:
    """Show all that is known of the peer NAME: where its logs end as it told them, and how it fares.

    Exit codes: 0 it is well, 1 failed, 5 it fails, or was never asked.
    """
    this = here()
    instance, record, now_ms = this.peer(name), this.records()[name], wall_ms()
    if json_:
        as_json({**_json(record), "url": instance.url, "author": instance.author.hex()})
    else:
        authority = Authority(this.settings.charter)
        click.echo(f"{name} of {instance.member} at {instance.url}, author {instance.author.hex()}")
        click.echo(f"last answer {_ago(record.contact_ms, now_ms)}, round trip {_ms(record.round_trip_ms)}, clock {_clock(record)}")
        click.echo(f"{_bytes(record.bytes_in)} came from it, {_bytes(record.bytes_out)} went to it")
        if record.failures:
            click.echo(f"fails since {_ago(record.since_ms, now_ms)}, {record.failures} times in a row: {record.reason}")
            click.echo(f"tried again {_ahead(record.next_try_ms, now_ms)}; 'nsync peer reset {name}' tries it now")
        click.echo(f"its logs, told {_ago(record.heads_ms, now_ms)}:")
        for head in record.heads or ():
            click.echo(f"  {authority.name(head.author)} up to {head.seq} ({head.hash.hex()})")
        if record.contact_ms is None:
            click.echo("it has not answered yet: does the node run here, and there?")
    if record.failures or record.contact_ms is None:
        raise SystemExit(EXIT_UNREACHABLE)


@peer.command()
@click.argument("name")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def ping(name: str, json_: bool) -> None:
    """Ask the peer NAME now, signed as the node does: whether it knows us, how fast it answers, and what its clock shows.

    Exit codes: 0 it answers, 1 failed, 5 it does not answer, or does not accept us.
    """
    this = here()
    instance, meter = this.peer(name), Meter()
    with this.engine.connect() as connection:
        heads = SqlLog(connection, Authority(this.settings.charter)).stored_heads()
    error: Optional[NsyncError] = None
    try:
        asyncio.run(_hello(this, instance, meter, heads))
    except NsyncError as failure:
        error = failure
    offset_ms = asyncio.run(_offset(meter))
    if json_:
        as_json({"peer": name, "round_trip_ms": meter.round_trip_ms, "offset_ms": offset_ms, "error": str(error) if error else None})
    elif error is None:
        click.echo(f"{name} answers after {meter.round_trip_ms} ms; its clock is {_offset_text(offset_ms)}")
    if error is not None:
        hint = f"; its clock is {_offset_text(offset_ms)}" if isinstance(error, NotAuthorised) and offset_ms is not None else ""
        fail(f"{error}{hint}", EXIT_UNREACHABLE)


@peer.command()
@click.argument("name")
def reset(name: str) -> None:
    """End the back-off of the peer NAME: the node that runs here tries it at its next look, within its gossip_interval.

    Exit codes: 0 asked, 1 failed.
    """
    this = here()
    this.peer(name)
    with writing(this.engine) as connection:
        peers.ask_reset(connection, name, wall_ms())
    click.echo(f"the node tries {name} within {min(this.settings.gossip_interval_s, 30):g} s; 'nsync peer ping {name}' asks it at once")


async def _hello(this: Here, instance: Instance, meter: Meter, heads: list[Head]) -> None:
    settings = this.settings
    me = settings.me
    async with open_session(settings.source_address) as http:
        await PeerClient(http, this.settings.charter, me, instance, settings.key, meter).hello(session.digest(heads))


async def _offset(meter: Meter) -> Optional[int]:
    return meter.offset_ms(monotonic_ms(), wall_ms())


def _json(record: PeerRecord) -> Mapping[str, Any]:
    heads = None if record.heads is None else [{"author": h.author.hex(), "seq": h.seq, "hash": h.hash.hex()} for h in record.heads]
    return {**record._asdict(), "heads": heads}


def _row(record: PeerRecord, now_ms: int) -> tuple[str, ...]:
    why = f"{record.reason} (since {_ago(record.since_ms, now_ms)}, {record.failures} times; next {_ahead(record.next_try_ms, now_ms)})"
    return (
        record.name,
        _ago(record.contact_ms, now_ms),
        _ms(record.round_trip_ms),
        _clock(record),
        _bytes(record.bytes_in),
        _bytes(record.bytes_out),
        why if record.failures else "",
    )


def _clock(record: PeerRecord) -> str:
    return "" if record.offset_ms is None else _offset_text(record.offset_ms)


def _offset_text(offset_ms: Optional[int]) -> str:
    if offset_ms is None:
        return "not known"
    text = f"{abs(offset_ms)} ms {'ahead' if offset_ms > 0 else 'behind'}" if offset_ms else "the same"
    return f"{text}: compare both with true time" if abs(offset_ms) > SIGN_AHEAD_MS_MAX else text


def _ms(value: Optional[int]) -> str:
    return "" if value is None else f"{value} ms"


def _ago(then_ms: Optional[int], now_ms: int) -> str:
    return "never" if then_ms is None else f"{_seconds(now_ms - then_ms)} ago"


def _ahead(then_ms: Optional[int], now_ms: int) -> str:
    return "now" if then_ms is None or then_ms <= now_ms else f"in {_seconds(then_ms - now_ms)}"


def _seconds(ms: int) -> str:
    s = max(0, ms) // 1000
    return f"{s} s" if s < 120 else f"{s // 60} min" if s < 7200 else f"{s // 3600} h"


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
