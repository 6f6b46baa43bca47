"""Going over to an amended charter: what is said in scopes that moved, and on logs that ended, may count or cease to (R5.1).

The work grows with what guests said there and the old home since; and, for prefixes that nobody had, with the logs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import select

from nsync.authority.charter import Charter, Move
from nsync.log.forks import Mark
from nsync.namespace import fields
from nsync.namespace.keys import Fact, Scope, scope_of
from nsync.store import schema
from nsync.store.bulk import bulk_insert
from nsync.store.compaction import compact_anew
from nsync.store.state import SqlState

_GUEST, _ENTRY = schema.guest.c, schema.entry.c

STRETCH_OPS = 4096
"""Ops looked at together where a log is read through."""


def adopt(state: SqlState, charter: Charter) -> set[Fact]:
    """Judge by `charter`, an amendment of the present one; returns the facts whose entries that changed."""
    before, old = state.readings(everybody=True), state.lines.charter
    state.judge_by(charter)
    adoption = _Adoption(state)
    for move in charter.moves[len(old.moves) :]:
        adoption.moved(move)
    for instance in charter.instances:
        had = old.by_name(instance.name)
        fresh = tuple(prefix for prefix in instance.scopes if old.home(prefix) is None)
        if fresh:
            compact_anew(state.connection)
            adoption.list_logs((branch.id for life in instance.incarnations for branch in state.lines.of(life.author)), 0, fresh)
        if set(instance.dois) - set(had.dois if had is not None else ()):
            adoption.list_logs(state.lines.branches, 0, ("",))
    return state.settle(before)


class _Adoption:
    """Lists anew who decides about what, and touches what has another home."""

    def __init__(self, state: SqlState) -> None:
        self.state = state
        self.connection = state.connection

    def moved(self, move: Move) -> None:
        """What guests say in the scopes of `move`, what their old home says since, and the scopes themselves."""
        instance = self.state.lines.charter.by_name(move.home)
        assert instance is not None
        rows = self.connection.execute(select(_GUEST.branch, _GUEST.seq).where(_GUEST.home == move.home)).all()
        self._list((Mark(*row) for row in rows), (move.prefix,))
        for author in (life.author for life in instance.incarnations):
            after = move.finals[author].seq if author in move.finals else 0
            self.list_logs((branch.id for branch in self.state.lines.of(author)), after, (move.prefix,))
        scopes = select(_ENTRY.scope).where(_ENTRY.kind == fields.SCOPE, _ENTRY.scope.startswith(move.prefix, autoescape=True))
        self.state.touched |= {Scope(scope) for scope in self.connection.execute(scopes).scalars()}

    def list_logs(self, branches: Iterable[int], after: int, prefixes: tuple[str, ...]) -> None:
        """What `branches` say after `after` in scopes below `prefixes`."""
        lines = self.state.lines
        for branch in branches:
            until = lines.branches[branch].applied
            for low in range(max(after, lines.branches[branch].first - 1), until, STRETCH_OPS):
                self._list([Mark(branch, seq) for seq in range(low + 1, min(low + STRETCH_OPS, until) + 1)], prefixes)

    def _list(self, marks: Iterable[Mark], prefixes: tuple[str, ...]) -> None:
        state = self.state
        guests: list[tuple[str, int, int]] = []
        for mark, op in state.statements.ops(marks):
            concerned: Collection[object] = [key for key in op.says if (scope_of(key) or "").startswith(prefixes)]
            if concerned:
                state.touched |= set(concerned)
                me = state.authority.name(state.lines.branches[mark.branch].author)
                guests += [(home, *mark) for home in state.who_decides(op.says, me)]
        bulk_insert(self.connection, schema.guest.name, ("home", "branch", "seq"), guests, skip_known=True)
