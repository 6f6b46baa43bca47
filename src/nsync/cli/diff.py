"""`nsync diff`: where Rucio's rows say something else than the catalogue, and, on request, the rows of others' data set right.

What needs Rucio is imported when the command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import click

from nsync.authority.effective import Authority
from nsync.catalogue.rules import shown
from nsync.cli.here import settings_in_force
from nsync.cli.output import as_json, fail
from nsync.rucio_bridge import scopes
from nsync.transport.times import wall_ms

if TYPE_CHECKING:
    from nsync.config import Settings
    from nsync.rucio_bridge.drift import Difference
    from nsync.rucio_bridge.mending import Mended

EXIT_ATTENTION = 4
LISTED_MAX = 1000
"""Differences that are listed unless all are wanted; all are counted."""


class _Look(NamedTuple):
    """What was found at one moment."""

    compared: int
    counts: dict[str, int]
    listed: list[Difference]

    @property
    def drifts(self) -> bool:
        """Whether somebody has to do something."""
        return bool(self.counts["drift"] or self.counts["unheard"])


@click.command()
@click.argument("scope", required=False)
@click.option("--repair", is_flag=True, help="Write the catalogue's entries back into the rows of other instances' data.")
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@click.option("--all", "all_", is_flag=True, help=f"List all differences, not only the first {LISTED_MAX}.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def diff(scope: Optional[str], repair: bool, yes: bool, all_: bool, json_: bool) -> None:
    """Compare the catalogue with Rucio's rows, everywhere or in SCOPE, entry by entry.

    What nobody said is drift: a local edit of another instance's data, which --repair undoes, or of this instance's own, which
    'nsync bridge audit' publishes. What waits to be published, waits for its home, is outruled, or parked, is counted apart. Private
    rows are not looked at. --repair removes nothing that local rules or locks hold, or that a local account made.

    Exit codes: 0 no drift (or all repaired), 1 failed, 4 drift found.
    """
    if (yes and not repair) or (json_ and repair and not yes):
        raise click.UsageError("--yes goes with --repair, and --repair --json needs it")
    settings = settings_in_force()
    look = _look(settings, scope, None if all_ else LISTED_MAX)
    mended: Optional[Mended] = None
    if repair and look.counts["drift"]:
        if not yes:
            _print(look, None)
            click.confirm(f"Write the catalogue's entries back where {look.counts['drift']} fields or rows drift?", abort=True)
        mended = _mend(settings, scope)
        look = _look(settings, scope, None if all_ else LISTED_MAX)
    if json_:
        as_json(_json(look, mended))
    else:
        _print(look, mended)
    if look.drifts:
        raise SystemExit(EXIT_ATTENTION)


def _look(settings: Settings, scope: Optional[str], listed_max: Optional[int]) -> _Look:
    from sqlalchemy.orm import Session

    from nsync.rucio_bridge.drift import STANDINGS, Drift
    from nsync.rucio_bridge.engine import get_engine
    from nsync.rucio_bridge.guard import unknown_schema
    from nsync.rucio_bridge.rows import Rows
    from nsync.store.database import reading
    from nsync.store.log import SqlLog

    listed: list[Difference] = []
    with reading(get_engine()) as connection, Session(bind=connection) as session:
        reason = unknown_schema(connection)
        if reason is not None:
            fail(reason)
        state = SqlLog(connection, Authority(settings.charter)).state
        if state.is_behind:
            fail("the catalogue is behind the logs; run 'nsync bridge rebuild'")
        finder = Drift(session, state, Rows(session, settings.me.name, settings.rse_expression), settings.me)
        with scopes.in_force(connection):
            for one in finder.run(scope):
                if listed_max is None or len(listed) < listed_max:
                    listed.append(one)
        if scope is not None and not finder.compared:
            fail(f"the catalogue shows nothing in scope {scope!r}; 'nsync status --json' lists the scopes that it shows")
        return _Look(finder.compared, {standing: finder.counts[standing] for standing in STANDINGS}, listed)


def _mend(settings: Settings, scope: Optional[str]) -> Mended:
    from nsync.node import bridge_of

    return bridge_of(settings).mend_drift(scope, wall_ms())


# ---- telling it


def _json(look: _Look, mended: Optional[Mended]) -> dict[str, object]:
    found: dict[str, object] = {
        "compared": look.compared,
        "counts": look.counts,
        "differences": [_as_object(one) for one in look.listed],
    }
    if mended is not None:
        left = [{"about": str(fact), "reason": reason} for fact, reason in mended.left.items()]
        found["repaired"] = {"written": list(map(str, mended.written)), "left": left, "more": mended.more}
    return found


def _as_object(one: Difference) -> dict[str, object]:
    return {
        "about": str(one.fact),
        "what": one.what,
        "field": one.field or None,
        "catalogue": _plain(one.catalogue),
        "row": _plain(one.row),
        "standing": one.standing,
        "owner": one.owner,
        "resolve": one.resolve,
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _print(look: _Look, mended: Optional[Mended]) -> None:
    for one in look.listed:
        click.echo("\n".join(_lines(one)))
    rest = sum(count for standing, count in look.counts.items() if standing != "parked") - len(look.listed)
    if rest:
        click.echo(f"and {rest} more (--all lists all)")
    counts = ", ".join(f"{count} {_WORDS[standing]}" for standing, count in look.counts.items() if count)
    click.echo(f"{look.compared} entries compared: {counts or 'no difference'}")
    if mended is not None:
        click.echo("\n".join(_mended_lines(mended)))


def _lines(one: Difference) -> Iterable[str]:
    field = f" {one.field}" if one.field else ""
    yield f"{one.fact}:{field} {one.what} ({one.standing}; {one.owner} decides)"
    if one.field:
        yield f"  catalogue: {_text(one.catalogue)}"
        yield f"  row:       {_text(one.row)}"
    yield f"  to resolve: {one.resolve}"


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    return value.hex() if isinstance(value, bytes) else shown(value)


def _mended_lines(mended: Mended) -> Sequence[str]:
    lines = [f"repaired: {len(mended.written)} rows are as the catalogue has them again"]
    lines += [f"  left: {fact}: {reason}" for fact, reason in mended.left.items()]
    return [*lines, "  there was too much for one transaction: repair again for the rest"] if mended.more else lines


_WORDS = {
    "drift": "drift from what others say",
    "unheard": "of this instance's own that nobody published",
    "unpublished": "not published yet",
    "outruled": "said here, and waiting or outruled",
    "parked": "parked",
}
