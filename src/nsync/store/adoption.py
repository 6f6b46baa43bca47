"""Going over to an amended charter: what is said in scopes that moved, by new guests, and on logs that ended, may count or cease to (R5.1).

The work grows with what guests said there and the old home since; for prefixes that nobody had, and for DOIs, with the logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from sqlalchemy import select

from nsync.authority.charter import Charter, Move
from nsync.log.forks import Mark
from nsync.namespace import fields
from nsync.namespace.keys import Scope, scope_of
from nsync.store import schema
from nsync.store.bulk import bulk_insert
from nsync.store.compaction import compact_anew
from nsync.store.state import SqlState

_Concerns = Callable[[Any], bool]
"""Whether an amendment may change what is said about a key, in its wire form."""

_GUEST, _ENTRY = schema.guest.c, schema.entry.c

STRETCH_OPS = 4096
"""Ops looked at together where a log is read through."""


def adopt(state: SqlState, charter: Charter) -> None:
    """Judge by `charter`, an amendment of the present one; the facts whose entries that changes go into `state.changes`."""
    before, old = state.readings(everybody=True), state.lines.charter
    state.judge_by(charter)
    adoption, moves = _Adoption(state), charter.moves[len(old.moves) :]
    for move in moves:
        adoption.moved(move)
    fresh = tuple(prefix for instance in charter.instances for prefix in instance.scopes if old.home(prefix) is None)
    if fresh:
        adoption.list_logs(state.lines.branches, 0, _below(fresh))
    if _dois(charter) != _dois(old):
        adoption.list_logs(state.lines.branches, 0, _names_a_doi)
    hosts = [one for one in charter.instances if one.guests != _guests(old, one.name)]
    for host in hosts:
        state.touch_guests_of(host.author)
    if moves or fresh or hosts:
        compact_anew(state.connection)
    state.settle(before)


class _Adoption:
    """Lists anew who decides about what, and touches what has another home."""

    def __init__(self, state: SqlState) -> None:
        self.state = state
        self.connection = state.connection

    def moved(self, move: Move) -> None:
        """What guests say in the scopes of `move`, what their old home says since, and the scopes themselves."""
        instance = self.state.lines.charter.by_name(move.home)
        assert instance is not None
        concerns = _below((move.prefix,))
        rows = self.connection.execute(select(_GUEST.branch, _GUEST.seq).where(_GUEST.home == move.home)).all()
        self._list((Mark(*row) for row in rows), concerns)
        for author in (life.author for life in instance.incarnations):
            after = move.finals[author].seq if author in move.finals else 0
            self.list_logs((branch.id for branch in self.state.lines.of(author)), after, concerns)
        scopes = select(_ENTRY.scope).where(_ENTRY.kind == fields.SCOPE, _ENTRY.scope.startswith(move.prefix, autoescape=True))
        self.state.touched |= {Scope(scope) for scope in self.connection.execute(scopes).scalars()}

    def list_logs(self, branches: Iterable[int], after: int, concerns: _Concerns) -> None:
        """What `branches` say after `after` about keys that it concerns."""
        lines = self.state.lines
        for branch in branches:
            until = lines.branches[branch].applied
            for low in range(max(after, lines.branches[branch].first - 1), until, STRETCH_OPS):
                self._list([Mark(branch, seq) for seq in range(low + 1, min(low + STRETCH_OPS, until) + 1)], concerns)

    def _list(self, marks: Iterable[Mark], concerns: _Concerns) -> None:
        state = self.state
        guests: list[tuple[str, int, int]] = []
        for mark, op in state.statements.ops(marks):
            concerned = [key for key in op.says if concerns(key)]
            if concerned:
                state.touched.update(concerned)
                me = state.authority.name(state.lines.branches[mark.branch].author)
                guests += [(home, *mark) for home in state.who_decides(op.says, me)]
        bulk_insert(self.connection, schema.guest.name, ("home", "branch", "seq"), guests, skip_known=True)


def _below(prefixes: tuple[str, ...]) -> _Concerns:
    return lambda key: (scope_of(key) or "").startswith(prefixes)


def _names_a_doi(key: Any) -> bool:
    return bool(key[:2] == (fields.ATTRIBUTE, fields.DOI))


def _dois(charter: Charter) -> set[tuple[str, str]]:
    return {(prefix, instance.name) for instance in charter.instances for prefix in instance.dois}


def _guests(charter: Charter, name: str) -> Mapping[str, tuple[str, ...]]:
    instance = charter.by_name(name)
    return instance.guests if instance is not None else {}
