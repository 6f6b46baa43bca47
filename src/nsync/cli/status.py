"""`nsync status`: what this instance has, what it lacks, and whether something waits for a decision.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from nsync.authority.charter import Charter, Instance
from nsync.authority.effective import Authority
from nsync.cli.here import settings_in_force
from nsync.cli.output import add_row, as_json
from nsync.log.floor import Floor
from nsync.log.stored import PeerRecord
from nsync.store import kept, peers
from nsync.store import status as store
from nsync.store.log import SqlLog
from nsync.store.notary import ALARMS
from nsync.store.reach import Reach, reach
from nsync.store.repair import found_below
from nsync.transport.peers import held_back_by
from nsync.transport.times import wall_ms

EXIT_BEHIND = 3
EXIT_ATTENTION = 4
SCOPES_SHOWN = 3
"""Of one home in the table; with --json, all."""


class Home(NamedTuple):
    """An instance, the scopes shown here whose home it is, and how far each peer is with its log."""

    scopes: tuple[str, ...]
    peers: dict[str, Reach]


class Look(NamedTuple):
    """What this database says at one moment."""

    found: store.Status
    logs: dict[str, store.LogStatus]
    waits: dict[bytes, str]
    read_only: Optional[str]
    clock: Optional[str]
    """Why nothing is signed for now."""
    homes: dict[str, Home]
    progress: store.Progress
    audits: Sequence[str]
    """What is to be looked at, though no trigger told of it."""
    floor: Optional[Floor]
    alarms: tuple[str, ...]

    @property
    def attention(self) -> bool:
        """Whether somebody should look."""
        found = self.found
        refused = any(log.refused for log in found.logs)
        return bool(found.conflicts or found.parked or refused or self.read_only or self.clock or self.alarms)

    @property
    def behind(self) -> bool:
        """Whether something is still to be done here."""
        return bool(self.found.outbox or self.audits or self.progress.behind or any(log.stored != log.applied for log in self.found.logs))


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def status(json_: bool) -> None:
    """Show how far this instance is with each member's log, and its peers with each; what the catalogue holds, and what needs attention.

    Peers stand where they said that they do when the node here last spoke to them; whether it runs and how they fare is for
    'nsync peer list'. Exit codes: 0 all in order, 1 failed, 3 something is still to be fetched, applied or published,
    4 conflicts, parked or refused changesets, alarms, or nothing is published here.
    """
    settings = settings_in_force(is_member=False)
    from nsync.rucio_bridge.engine import get_engine

    with get_engine().connect() as connection:
        look = _look(connection, settings.charter, settings.me)
    if json_:
        as_json({"instance": settings.me.name, **_json(look, settings.charter)})
    else:
        _print(look, settings.me.name)
    if look.attention:
        raise SystemExit(EXIT_ATTENTION)
    if look.behind:
        raise SystemExit(EXIT_BEHIND)


def _look(connection: Connection, charter: Charter, me: Instance) -> Look:
    from nsync.rucio_bridge import audit

    now_ms, log, records = wall_ms(), SqlLog(connection, Authority(charter)), peers.load(connection)
    found = store.status(connection)
    stored = {entry.author: entry for entry in found.logs}
    logs = {
        name: stored.get(life.author, store.LogStatus(life.author, 0, 0, None))
        for instance in charter.instances
        for name, life in zip(_names(instance), instance.incarnations)
    }
    logs.update({author.hex(): entry for author, entry in stored.items() if charter.life(author) is None})
    alarms = (kept.read(connection, ALARMS) or b"").decode()
    return Look(
        found=found,
        logs=logs,
        waits=log.waits(now_ms),
        read_only=log.read_only(me.author),
        clock=held_back_by(records, now_ms),
        homes=_homes(connection, log, charter, [record for record in records if charter.by_name(record.name) is not None]),
        progress=store.progress(connection, store.believed(records, charter)),
        audits=audit.pending(connection),
        floor=log.lines.usable_floors[-1] if log.lines.usable_floors else None,
        alarms=(*alarms.splitlines(), *([below] if (below := found_below(log)) is not None else [])),
    )


def _homes(connection: Connection, log: SqlLog, charter: Charter, records: Sequence[PeerRecord]) -> dict[str, Home]:
    """For each instance that has said something, or is the home of something shown here."""
    scopes: dict[str, list[str]] = {}
    for scope in store.scopes(connection):
        home = charter.home(scope)
        if home is not None:
            scopes.setdefault(home.name, []).append(scope)
    found = {}
    for instance in charter.instances:
        authors = [life.author for life in instance.incarnations]
        if instance.name in scopes or any(log.lines.of(author) for author in authors):
            reaches = {record.name: reach(connection, log.lines, authors, record.heads) for record in records}
            found[instance.name] = Home(tuple(scopes.get(instance.name, ())), reaches)
    return found


def _json(look: Look, charter: Charter) -> dict[str, object]:
    return {
        **look.found._asdict(),
        "charter": charter.version,
        "read_only": look.read_only,
        "clock": look.clock,
        "logs": {name: _log(log, look.waits) for name, log in look.logs.items()},
        "homes": {
            name: {"scopes": home.scopes, "peers": {peer: found._asdict() for peer, found in home.peers.items()}}
            for name, home in look.homes.items()
        },
        "progress": look.progress._asdict(),
        "audits": look.audits,
        "floor": None if look.floor is None else look.floor.number,
        "alarms": look.alarms,
    }


def _print(look: Look, me: str) -> None:
    console = Console()
    table = Table("instance", "stored ops", "applied ops", "")
    for name, log in sorted(look.logs.items()):
        add_row(table, name, str(log.stored), str(log.applied), log.refused or look.waits.get(log.author, ""))
    console.print(table)
    names = sorted({peer for home in look.homes.values() for peer in home.peers})
    if names:
        table = Table("home of", *names, title="how far the peers are, as they said last")
        for home, row in sorted(look.homes.items()):
            add_row(table, _scopes(home, row.scopes), *(_reach(row.peers[peer]) if peer in row.peers else "" for peer in names))
        console.print(table)
    if look.progress.behind:
        click.echo(f"catching up: {look.progress}")
    click.echo(f"{me} shows " + ", ".join(f"{count} {kind}" for kind, count in look.found.shown.items()))
    floor = "none yet" if look.floor is None else str(look.floor.number)
    click.echo(f"conflicts: {look.found.conflicts}  parked: {look.found.parked}  not published yet: {look.found.outbox}  floor: {floor}")
    notes = (("read-only", look.read_only), ("nothing is published", look.clock), *(("alarm", alarm) for alarm in look.alarms))
    for what, text in (*notes, *(("to be looked at", audit) for audit in look.audits)):
        if text is not None:
            click.echo(f"{what}: {text}")
    if look.found.conflicts or look.found.parked:
        click.echo("'nsync conflict list' says what they are and what resolves them")


def _scopes(home: str, scopes: Sequence[str]) -> str:
    shown = ", ".join(scopes[:SCOPES_SHOWN])
    more = f" and {len(scopes) - SCOPES_SHOWN} more" if len(scopes) > SCOPES_SHOWN else ""
    return f"{home}: {shown}{more}" if scopes else home


def _reach(found: Reach) -> str:
    return f"{found.ops} ops {found.state}" if found.ops else {"same": "all", "unknown": "?"}.get(found.state, found.state)


def _names(instance: Instance) -> list[str]:
    """How each of its incarnations is called: the present one by its name."""
    return [*(f"{instance.name} before {number}" for number in range(1, len(instance.past) + 1)), instance.name]


def _log(log: store.LogStatus, waits: Mapping[bytes, str]) -> dict[str, object]:
    return {"stored": log.stored, "applied": log.applied, "refused": log.refused, "waits": waits.get(log.author)}
