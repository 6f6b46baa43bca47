"""`nsync conflict`: what a rule of the namespace took away, what does not fit this Rucio, and what the operator decides about it.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Callable, Optional

import click
from sqlalchemy.orm import Session

from nsync.catalogue.entries import Conflict, DidEntry, Entry
from nsync.cli.here import settings_in_force
from nsync.cli.output import as_json, fail, stream_json
from nsync.namespace.keys import Key, Rse, ends_of, fact_of
from nsync.rucio_bridge import parked, scopes
from nsync.rucio_bridge.parked import ParkedFact, Waits
from nsync.store import migrations
from nsync.store import status as store
from nsync.store.changes import PART_FACTS
from nsync.store.database import reading
from nsync.store.shown import Shown
from nsync.transport.times import wall_ms

if TYPE_CHECKING:
    from nsync.rucio_bridge.bridge import Bridge

EXIT_ATTENTION = 4
FACTS_MAX = 50
"""That 'show' tells one by one; with --json, all."""


@click.group()
def conflict() -> None:
    """What a rule of the namespace took away, and what does not fit this Rucio."""


@conflict.command("list")
@click.option("--all", "all_", is_flag=True, help="List also what only waits with something else.")
@click.option("--json", "json_", is_flag=True, help="Print JSON; always everything.")
def list_(all_: bool, json_: bool) -> None:
    """List conflicts and parked facts, each with what resolves it.

    A conflict is the same at every instance: a rule preferred one statement to another. A parked fact is this
    instance's own affair: rows that its Rucio cannot take. Exit codes: 0 nothing listed, 1 failed, 4 something is.
    """
    with _database() as session:
        conflicts, batches = store.conflicts(session.connection()), parked.summary(session)
        if json_:
            stream_json({"conflicts": list(map(_conflict_json, conflicts))}, "parked", map(_parked_json, parked.listing(session)))
        else:
            for one in conflicts:
                click.echo(_conflict_text(one))
            for batch, waits in batches.items():
                click.echo(f"parked with changeset {batch}:")
                _print_facts(_causes_first(partial(parked.listing, session, batch)), waits, all_)
            if batches:
                click.echo("'nsync conflict show BATCH' says more of one, 'nsync conflict accept BATCH --partial' writes what of it fits")
    if conflicts or batches:
        raise SystemExit(EXIT_ATTENTION)


@conflict.command()
@click.argument("what")
@click.option("--json", "json_", is_flag=True, help="Print JSON; always everything.")
def show(what: str, json_: bool) -> None:
    """Show all about WHAT: a DID (SCOPE:NAME), a scope, an RSE (INSTANCE/RSE), or a batch as 'conflict list' names it.

    Conflicts with what stands and what lost; what is parked since when and why, whether a row is here, what waits with it, what
    resolves it, and what accepting its batch would do. Exit codes: 0 there is nothing about it, 1 failed, 4 there is.
    """
    with _database() as session:
        batches = parked.summary(session)
        conflicts = [one for one in store.conflicts(session.connection()) if what in _names(one[0])]

        def about(causes: Optional[bool] = None) -> Iterator[ParkedFact]:
            """What of all that is parked is about it."""
            if what in batches:
                yield from parked.listing(session, what, causes)
            else:
                yield from (one for one in parked.listing(session, causes=causes) if what in _names(one.fact))

        counts = Counter({what: batches[what].facts}) if what in batches else Counter(one.batch for one in about())
        its = {batch: _batch(session, batch, waits) for batch, waits in batches.items() if batch in counts}
        if json_:
            rows = _with_rows(session, about())
            stream_json({"conflicts": list(map(_conflict_json, conflicts)), "batches": its}, "parked", rows)
        elif not conflicts and not counts:
            click.echo(f"{what}: no conflict, and nothing of it is parked here; 'nsync conflict list' names what is")
        else:
            _print_shown(conflicts, list(_with_rows(session, islice(_causes_first(about), FACTS_MAX))), sum(counts.values()), its)
    if conflicts or counts:
        raise SystemExit(EXIT_ATTENTION)


@conflict.command()
@click.argument("batch")
@click.option("--partial", is_flag=True, help="Without what does not fit: that waits on by itself. There is no other way to accept.")
@click.option("--dry-run", is_flag=True, help="Say what would be written and what not, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def accept(batch: str, partial: bool, dry_run: bool, yes: bool, json_: bool) -> None:
    """Have the parked BATCH written without the facts that do not fit, and what hangs on them by key.

    Those stay parked as 'BATCH rest', each by itself, and are written too once their causes are gone. The node writes what fits, in one
    transaction, at its next look (30 s). To say beforehand what that is, it is done and undone: Rucio's writers wait meanwhile, some
    10 000 files a second. Exit codes: 0 done, 1 failed.
    """
    if not partial:
        fail(f"what does not fit cannot be accepted as a whole; 'nsync conflict accept \"{batch}\" --partial' writes the rest")
    bridge = _bridge()
    found = bridge.would_accept(batch, wall_ms())
    if not json_:
        click.echo(f"{found.written} facts of {batch} are written, {len(found.rest)} stay parked as '{batch}{parked.REST}':")
        ordered = sorted(found.rest, key=_waits)
        _print_facts(iter(ordered), parked.Waits(len(ordered), sum(not _waits(one) for one in ordered), 0), all_=False)
    if not dry_run:
        if not yes:
            click.confirm(f"Write {batch} without them?", abort=True, err=True)
        bridge.accept(batch)
    if json_:
        as_json({"batch": batch, "written": found.written, "rest": list(map(_parked_json, found.rest)), "dry_run": dry_run})
    elif not dry_run:
        click.echo("accepted: the node writes what fits within 30 s")


# ---- what there is


About = tuple[Key, Conflict]


def _names(key: Key) -> set[str]:
    """By which names an operator asks for a key: its own, those of what it hangs on, and their scopes."""
    fact = fact_of(key)
    nodes = ends_of(fact) or (fact,)
    return {name for node in nodes for name in ((f"{node[1]}/{node[2]}",) if isinstance(node, Rse) else (str(node), str(node[1])))}


@contextmanager
def _database() -> Iterator[Session]:
    """One moment of it."""
    from nsync.rucio_bridge.engine import get_engine

    with reading(get_engine()) as connection, Session(connection) as session:
        migrations.require_current(connection)
        yield session


def _bridge() -> Bridge:
    settings = settings_in_force()
    from nsync.node import bridge_of

    return bridge_of(settings)


def _with_rows(session: Session, facts: Iterator[ParkedFact]) -> Iterator[dict[str, Any]]:
    """Each as JSON, with what stands in Rucio's tables where it belongs."""
    from nsync import config
    from nsync.rucio_bridge.rows import Rows

    settings = config.read()
    rows = Rows(session, settings.me.name, settings.rse_expression)
    while part := list(islice(facts, PART_FACTS)):
        wanted = [one.fact for one in part]
        with scopes.in_force(session.connection()):
            here, shown = rows.read(wanted), Shown(session.connection()).entries(wanted)
        yield from ({**_parked_json(one), "here": _row(here.get(one.fact), shown.get(one.fact))} for one in part)


def _row(row: Optional[Entry], shown: Optional[Entry]) -> str:
    if row is None:
        return "no row"
    if isinstance(row, DidEntry) and isinstance(shown, DidEntry) and not row.identity.agrees(shown.identity):
        return f"another one of its name: {row.identity}"
    return "a row of it"


# ---- how it is told


def _batch(session: Session, batch: str, waits: Waits) -> dict[str, Any]:
    """How much waits in a batch, and what accepting it would do, as far as that can be told without trying."""
    apart = {one.fact for one in parked.listing(session, batch, causes=True)}
    kinds: Counter[str] = Counter()
    stay = 0
    for one in parked.listing(session, batch):
        kinds[type(one.fact).__name__.lower()] += 1
        stay += one.fact in apart or not apart.isdisjoint(ends_of(one.fact))
    if batch == parked.base(batch):
        would = (
            f"'nsync conflict accept \"{batch}\" --partial' would write some {waits.facts - stay} and leave {stay}; --dry-run says which"
        )
    else:
        would = parked.not_to_accept(batch, waits.facts)
    return {"waits": dict(sorted(kinds.items())), "since": _time(waits.since_ms), "accept": would}


def _waits(one: ParkedFact) -> bool:
    """Whether it has no reason of its own."""
    return one.reason.startswith(parked.WAITS_FOR)


def _causes_first(listing: Callable[..., Iterator[ParkedFact]]) -> Iterator[ParkedFact]:
    return chain(listing(causes=True), listing(causes=False))


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="seconds")


def _conflict_json(one: About) -> dict[str, Any]:
    key, found = one
    return {"about": str(key), **found._asdict()}


def _parked_json(one: ParkedFact) -> dict[str, Any]:
    return {**one._asdict(), "fact": str(one.fact), "since": _time(one.since_ms)}


def _conflict_text(one: About) -> str:
    key, found = one
    return f"{key}: {found.rule}\n  stands: {found.winner}\n  lost:   {found.loser}\n  to resolve: {found.resolve}"


def _print_shown(conflicts: Sequence[About], told: Sequence[dict[str, Any]], count: int, batches: dict[str, dict[str, Any]]) -> None:
    for about in conflicts:
        click.echo(f"{_conflict_text(about)}\n  stamps: {about[1].stamps}")
    for one in told:
        click.echo(f"{one['fact']}: parked with {one['batch']} since {one['since']}\n  {one['reason']}\n  in Rucio: {one['here']}")
    if len(told) < count:
        click.echo(f"and {count - len(told)} more (--json has all)")
    for batch, about_it in batches.items():
        waits = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in about_it["waits"].items())
        click.echo(f"with {batch} wait {waits}\n  {about_it['accept']}")


def _print_facts(causes_first: Iterator[ParkedFact], waits: Waits, all_: bool) -> None:
    """The causes, the rest counted unless all is wanted."""
    shown = waits.facts if all_ else max(waits.causes, 1)  # one at least: the cause may lie in another changeset
    for one in islice(causes_first, shown):
        click.echo(f"  {one.fact}\n    {one.reason}")
    if rest := waits.facts - shown:
        click.echo(f"  and {rest} {'facts wait' if rest > 1 else 'fact waits'} with {'them' if shown > 1 else 'it'} (--all lists all)")
