"""`nsync conflict`: what a rule of the namespace took away, what does not fit this Rucio, and what the operator decides about it.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import click
from sqlalchemy.orm import Session

from nsync.catalogue.entries import Conflict, DidEntry, Entry
from nsync.cli.here import settings_in_force
from nsync.cli.output import as_json, fail
from nsync.namespace.keys import Fact, Key, Rse, ends_of, fact_of
from nsync.rucio_bridge import parked, scopes
from nsync.rucio_bridge.parked import ParkedFact
from nsync.store import migrations
from nsync.store import status as store
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
    found = _look()
    if json_:
        as_json({"conflicts": list(map(_conflict_json, found.conflicts)), "parked": list(map(_parked_json, found.parked))})
    else:
        for one in found.conflicts:
            click.echo(_conflict_text(one))
        for batch, facts in _by_batch(found.parked).items():
            click.echo("\n".join(_parked_text(batch, facts, all_)))
        if found.parked:
            click.echo("'nsync conflict show BATCH' says more of one, 'nsync conflict accept BATCH --partial' writes what of it fits")
    if found.conflicts or found.parked:
        raise SystemExit(EXIT_ATTENTION)


@conflict.command()
@click.argument("what")
@click.option("--json", "json_", is_flag=True, help="Print JSON; always everything.")
def show(what: str, json_: bool) -> None:
    """Show all about WHAT: a DID (SCOPE:NAME), a scope, an RSE (INSTANCE/RSE), or a batch as 'conflict list' names it.

    Conflicts with what stands and what lost; what is parked since when and why, whether a row is here, what waits with it, what
    resolves it, and what accepting its batch would do. Exit codes: 0 there is nothing about it, 1 failed, 4 there is.
    """
    everything = _look()
    found = everything.about(what)
    batches = {batch: _batch(batch, facts) for batch, facts in _by_batch(everything.of_batches(found)).items()}
    if json_:
        rows = _rows([one.fact for one in found.parked])
        waiting = [{**_parked_json(one), "here": rows[one.fact]} for one in found.parked]
        as_json({"conflicts": list(map(_conflict_json, found.conflicts)), "parked": waiting, "batches": batches})
    elif not found.conflicts and not found.parked:
        click.echo(f"{what}: no conflict, and nothing of it is parked here; 'nsync conflict list' names what is")
    else:
        _print_shown(found, batches)
    if found.conflicts or found.parked:
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
        click.echo("\n".join(_facts_text(found.rest, all_=False)))
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


class _Look(NamedTuple):
    conflicts: Sequence[About]
    parked: Sequence[ParkedFact]

    def about(self, what: str) -> _Look:
        """What is about a DID, scope, RSE or batch."""
        return _Look(
            [one for one in self.conflicts if what in _names(one[0])],
            [one for one in self.parked if what in (one.batch, *_names(one.fact))],
        )

    def of_batches(self, found: _Look) -> Sequence[ParkedFact]:
        """All that waits in the batches of what was `found`."""
        batches = {one.batch for one in found.parked}
        return [one for one in self.parked if one.batch in batches]


def _names(key: Key) -> set[str]:
    """By which names an operator asks for a key: its own, those of what it hangs on, and their scopes."""
    fact = fact_of(key)
    nodes = ends_of(fact) or (fact,)
    return {name for node in nodes for name in ((f"{node[1]}/{node[2]}",) if isinstance(node, Rse) else (str(node), str(node[1])))}


def _look() -> _Look:
    from nsync.rucio_bridge.engine import get_engine

    engine = get_engine()
    with engine.connect() as connection:
        migrations.require_current(connection)
        conflicts = store.conflicts(connection)
    with Session(engine) as session:
        return _Look(conflicts, parked.listing(session))


def _bridge() -> Bridge:
    settings = settings_in_force()
    from nsync.node import bridge_of

    return bridge_of(settings)


def _rows(facts: Collection[Fact]) -> dict[Fact, str]:
    """What stands in Rucio's tables where each of `facts` belongs."""
    from nsync import config
    from nsync.rucio_bridge.engine import get_engine
    from nsync.rucio_bridge.rows import Rows

    settings = config.read()
    with Session(get_engine()) as session, scopes.in_force(session.connection()):
        rows = Rows(session, settings.me.name, settings.rse_expression).read(facts)
        shown = Shown(session.connection()).entries(facts)
    return {fact: _row(rows.get(fact), shown.get(fact)) for fact in facts}


def _row(row: Optional[Entry], shown: Optional[Entry]) -> str:
    if row is None:
        return "no row"
    if isinstance(row, DidEntry) and isinstance(shown, DidEntry) and not row.identity.agrees(shown.identity):
        return f"another one of its name: {row.identity}"
    return "a row of it"


# ---- how it is told


def _batch(batch: str, facts: Sequence[ParkedFact]) -> dict[str, Any]:
    """How much waits in a batch, and what accepting it would do, as far as that can be told without trying."""
    kinds = Counter(type(one.fact).__name__.lower() for one in facts)
    return {"waits": dict(sorted(kinds.items())), "since": _time(min(one.since_ms for one in facts)), "accept": _would(batch, facts)}


def _would(batch: str, facts: Sequence[ParkedFact]) -> str:
    if batch != parked.base(batch):
        return parked.not_to_accept(batch, len(facts))
    apart = {one.fact for one in facts if not _waits(one)}
    stay = sum(one.fact in apart or not apart.isdisjoint(ends_of(one.fact)) for one in facts)
    return f"'nsync conflict accept \"{batch}\" --partial' would write some {len(facts) - stay} and leave {stay}; --dry-run says which"


def _waits(one: ParkedFact) -> bool:
    """Whether it has no reason of its own."""
    return one.reason.startswith("waits for")


def _by_batch(facts: Sequence[ParkedFact]) -> dict[str, list[ParkedFact]]:
    batches: dict[str, list[ParkedFact]] = {}
    for one in facts:
        batches.setdefault(one.batch, []).append(one)
    return batches


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


def _print_shown(found: _Look, batches: dict[str, dict[str, Any]]) -> None:
    for about in found.conflicts:
        click.echo(f"{_conflict_text(about)}\n  stamps: {about[1].stamps}")
    told = sorted(found.parked, key=_waits)[:FACTS_MAX]
    rows = _rows([one.fact for one in told])
    for one in told:
        click.echo(f"{one.fact}: parked with {one.batch} since {_time(one.since_ms)}\n  {one.reason}\n  in Rucio: {rows[one.fact]}")
    if len(told) < len(found.parked):
        click.echo(f"and {len(found.parked) - len(told)} more (--json has all)")
    for batch, about_it in batches.items():
        waits = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in about_it["waits"].items())
        click.echo(f"with {batch} wait {waits}\n  {about_it['accept']}")


def _parked_text(batch: str, facts: Sequence[ParkedFact], all_: bool) -> list[str]:
    return [f"parked with changeset {batch}:", *_facts_text(facts, all_)]


def _facts_text(facts: Sequence[ParkedFact], all_: bool) -> list[str]:
    """The causes first, the rest counted unless all is wanted."""
    ordered = sorted(facts, key=_waits)
    causes = sum(not _waits(one) for one in facts)
    shown = ordered if all_ else ordered[: max(causes, 1)]  # one at least: the cause may lie in another changeset
    lines = [f"  {one.fact}\n    {one.reason}" for one in shown]
    rest = len(ordered) - len(shown)
    if rest:
        lines.append(
            f"  and {rest} {'facts wait' if rest > 1 else 'fact waits'} with {'them' if len(shown) > 1 else 'it'} (--all lists all)"
        )
    return lines
