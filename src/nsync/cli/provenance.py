"""`nsync log`, `nsync explain` and `nsync did status`: who said what about a DID, why it shows as it does, how far it has come.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Optional

import click
from rich.console import Console
from rich.table import Table

from nsync.authority.effective import Authority
from nsync.catalogue.rules import shown
from nsync.cli.here import settings_in_force
from nsync.cli.output import add_row, as_json, fail
from nsync.log.stored import Head
from nsync.namespace.keys import Did, fact_of, key_bytes
from nsync.rucio_bridge import parked, scopes
from nsync.store import peers, provenance
from nsync.store.database import reading
from nsync.store.status import believed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nsync.authority.charter import Charter, Instance
    from nsync.rucio_bridge.drift import Difference
    from nsync.store.provenance import Spoken
    from nsync.store.state import SqlState

NEWEST = 200
"""Ops that speak of a DID, the newest, that are told of unless more are wanted."""
NEWEST_MAX = 100_000


class _About(NamedTuple):
    """One DID, as one moment of the database has it."""

    connection: Connection
    state: SqlState
    charter: Charter
    me: Instance
    rse_expression: str
    did: Did


_limit = click.option(
    "--limit",
    type=click.IntRange(1, NEWEST_MAX),
    default=NEWEST,
    show_default=True,
    help="How many of the ops that speak of it, the newest.",
)
_as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@contextmanager
def _opened(name: str) -> Iterator[_About]:
    """The DID `name`, SCOPE:NAME. Ends the command when it is written otherwise."""
    scope, colon, rest = name.partition(":")
    if not (scope and colon and rest):
        raise click.UsageError(f"{name!r} is no DID: write SCOPE:NAME")
    settings = settings_in_force(is_member=False)
    from nsync.rucio_bridge.engine import get_engine
    from nsync.store.log import SqlLog

    charter = settings.charter
    with reading(get_engine()) as connection:
        state = SqlLog(connection, Authority(charter)).state
        yield _About(connection, state, charter, settings.me, settings.rse_expression, Did(scope, rest))


def _unknown(about: _About) -> NoReturn:
    home = about.charter.home(about.did.scope)
    whose = "the charter delegates its scope to nobody" if home is None else f"its home is {home.name}"
    fail(
        f"nothing that is applied here speaks of {about.did}; {whose}. 'nsync status' says what is not here yet, "
        "'nsync diff' what is not published"
    )


def _spoken(about: _About, newest: int) -> Spoken:
    spoken = provenance.spoken_of(about.state, about.did, newest)
    return spoken if spoken.keys else _unknown(about)


@click.command()
@click.argument("did")
@_limit
@_as_json
def log(did: str, limit: int, json_: bool) -> None:
    """List what was said about DID (SCOPE:NAME): by whom, at which place of their log, when by their clock, and what became of it.

    Also what hangs on it: attachments at either end, replicas. In the order of the stamps, in which whoever knew another statement comes
    after it. Exit codes: 0 done, 1 failed, or nobody spoke of it.
    """
    with _opened(did) as about:
        spoken = _spoken(about, limit)
        found = provenance.told(about.state, spoken)
    if json_:
        as_json({"did": did, "statements": [{**one._asdict(), "about": str(one.about)} for one in found], "cut": spoken.cut})
        return
    for one in found:
        click.echo(f"{one.time} {one.author} {one.seq} {one.about}: {one.said}\n  {one.standing}: {one.why}")
    if spoken.cut:
        click.echo(f"older ones are left out (--limit, now {limit})")


@click.command()
@click.argument("did")
@click.argument("field", required=False)
@_limit
@_as_json
def explain(did: str, field: Optional[str], limit: int, json_: bool) -> None:
    """Say why the catalogue shows what it shows of DID (SCOPE:NAME), or of one FIELD of it.

    With all statements, the rule that chose, what rules took away, what would change it, and why something is parked here. FIELD is one
    of closed, opendata, doi, record, opendata_meta, a metadata column, or json.KEY. Exit codes: 0 done, 1 failed, or nobody spoke of it.
    """
    with _opened(did) as about:
        spoken = _spoken(about, limit)
        found = provenance.explained(about.state, about.did, field, limit)
        if not found:
            said = sorted({str(key[1]) for key in spoken.keys if key[2:] == tuple(about.did)})
            fail(f"nobody spoke of the field {field!r} of {did}" + (f"; somebody did of {', '.join(said)}" if said else ""))
        reasons = _parked(about, spoken)
    if json_:
        as_json(
            {
                "did": did,
                "explanations": [
                    {
                        **one._asdict(),
                        "key": str(one.key),
                        "lines": [line._asdict() for line in one.lines],
                        "conflicts": [conflict._asdict() for conflict in one.conflicts],
                    }
                    for one in found
                ],
                "parked": reasons,
            }
        )
        return
    for one in found:
        click.echo(one.text())
    for fact, reason in reasons.items():
        click.echo(f"parked here: {fact}\n  {reason}")


def _parked(about: _About, spoken: Spoken) -> dict[str, str]:
    """What waits here of the DID and of what hangs on it, with the reasons."""
    found = parked.reasons(about.connection, {about.did, *map(fact_of, spoken.keys)})
    return {str(fact): found[fact] for fact in sorted(found, key=key_bytes)}


# ---- nsync did status


@click.group()
def did() -> None:
    """One DID of the shared namespace."""


@did.command("status")
@click.argument("did")
@_limit
@_as_json
def did_status(did: str, limit: int, json_: bool) -> None:
    """Show how far each instance is with what was said about DID (SCOPE:NAME), and how it stands here.

    "told": what a peer told that it has, when the node here last spoke to it. "signed": what lies in the past of the newest changeset of
    it that is here: that is proof. Exit codes: 0 done, 1 failed, or nobody spoke of it.
    """
    with _opened(did) as about:
        spoken = _spoken(about, limit)
        found = provenance.progress(about.state, about.did, spoken, _heads(about))
        here = _here(about, spoken)
    if json_:
        ways = {name: way._asdict() for name, way in found.ways.items()}
        drift = [{"about": str(one.fact), "field": one.field or one.what, "standing": one.standing} for one in here.differences]
        as_json(
            {
                "did": did,
                "changesets": found.changesets,
                "settled": found.settled,
                "instances": ways,
                "here": {"shown": here.shown, "row": here.row, "parked": here.parked, "differences": drift},
                "cut": spoken.cut,
            }
        )
        return
    total = found.changesets
    table = Table(
        "instance", "said", "told that it has", "signed that it saw", title=f"{total} changesets speak of {did}, {found.settled} settled"
    )
    for name, way in sorted(found.ways.items()):
        has = f"{total} of {total} (here)" if name == about.me.name else "?" if way.has is None else f"{way.has} of {total}"
        add_row(table, name, str(way.said), has, f"{way.saw} of {total}")
    Console().print(table)
    click.echo(f"shown: {here.shown or 'nothing'}\nrow in Rucio: {'yes' if here.row else 'no'}")
    for fact, reason in here.parked.items():
        click.echo(f"parked: {fact}\n  {reason}")
    for one in here.differences:
        click.echo(f"{one.standing}: {one.fact}: {one.field or one.what}\n  to resolve: {one.resolve}")
    if spoken.cut:
        click.echo(f"older changesets are left out (--limit, now {limit} ops)")


def _heads(about: _About) -> dict[str, Optional[list[Head]]]:
    """What each peer told, where it is believed; what this instance has itself is in its tables."""
    records = [record for record in peers.load(about.connection) if record.heads is not None]
    return {record.name: believed([record], about.charter) or None for record in records}


class _Here(NamedTuple):
    """How the DID stands in this database."""

    shown: Optional[str]
    row: bool
    parked: dict[str, str]
    differences: list[Difference]


def _here(about: _About, spoken: Spoken) -> _Here:
    from sqlalchemy.orm import Session

    from nsync.rucio_bridge.drift import Drift
    from nsync.rucio_bridge.rows import Rows

    entry = about.state.entries([about.did]).get(about.did)
    with Session(bind=about.connection) as session, scopes.in_force(about.connection):
        rows = Rows(session, about.me.name, about.rse_expression)
        facts = {about.did, *map(fact_of, spoken.keys)}
        differences = list(Drift(session, about.state, rows, about.me).of(facts))
        has_row = about.did in rows.read([about.did])
    return _Here(None if entry is None else shown(getattr(entry, "identity", entry)), has_row, _parked(about, spoken), differences)
