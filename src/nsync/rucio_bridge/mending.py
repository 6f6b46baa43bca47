"""Drift is mended on request: the catalogue's entries are written back into rows of other instances' data (R7.5).

What drifts is looked for beside everybody (`look`), and judged again in the transaction that mends it. What materialise takes for
somebody else's is put right before, since it is only a row that was edited: the size and checksums of a file that this bridge wrote,
and an open-data entry of which the catalogue has nothing. Nothing is removed that local rules or locks hold, or that a local account
made (R5.7); a DID of which something else is local users' to say is left alone; nothing is signed; and what does not fit is not
written: it is told, and stays drift.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Callable, NamedTuple, Optional

from rucio.db.sqla import models
from sqlalchemy import text
from sqlalchemy.orm import Session

from nsync.authority.charter import Instance
from nsync.catalogue.entries import DidEntry
from nsync.namespace import fields, keys
from nsync.namespace.keys import FILE, Attachment, Constituent, Did, Fact, Replica, Rse, ends_of, key_bytes
from nsync.rucio_bridge import parked
from nsync.rucio_bridge.accounts import account_of
from nsync.rucio_bridge.drift import DRIFT, EXTRA, Drift
from nsync.rucio_bridge.lookup import look_up, names_of
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.opendata import OPEN
from nsync.rucio_bridge.rows import CONTENTS, DIDS, REPLICAS, RSE_ID, Rows, matches
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

FACTS_MAX = 100_000
"""That are mended in one transaction; the rest waits for the next call."""
BATCH = "repair of drift"
"""How texts and the parked table name what is written."""

_LOCKS = models.ReplicaLock.__table__
_DATASET_LOCKS = models.DatasetLock.__table__
_RULES = models.ReplicationRule.__table__


class Mended(NamedTuple):
    """What was done."""

    written: tuple[Fact, ...]
    """Whose rows are as the catalogue has them again."""
    left: dict[Fact, str]
    """What drifts on, and why."""
    more: bool
    """Whether there was too much for one transaction."""


class Found(NamedTuple):
    """What drifts, at most FACTS_MAX of it, and whether there is more."""

    facts: frozenset[Fact]
    more: bool


def look(finder: Drift, scope: Optional[str]) -> Found:
    """What drifts in `scope`, or everywhere."""
    found: set[Fact] = set()
    for one in finder.run(scope):
        if one.standing == DRIFT and one.fact not in found:
            if len(found) == FACTS_MAX:
                return Found(frozenset(found), True)
            found.add(one.fact)
    return Found(frozenset(found), False)


class Mending:
    """The mender of one transaction. `state` and `rows` make new ones: an attempt may be rolled back."""

    def __init__(self, session: Session, state: Callable[[], SqlState], rows: Callable[[], Rows], me: Instance) -> None:
        self.session = session
        self._state = state
        self._rows = rows
        self.me = me
        self.left: dict[Fact, str] = {}
        authority = state().authority
        self._proxies = {account_of(one.name) for one in authority.charter.instances if one.name != me.name}

    def run(self, found: Found, now_ms: int) -> Mended:
        """Mend what still drifts of what was found."""
        state, rows = self._state(), self._rows()
        drifts: dict[Fact, set[str]] = {}
        others: set[Fact] = set()
        for one in Drift(self.session, state, rows, self.me).of(found.facts):
            if one.standing == DRIFT:
                drifts.setdefault(one.fact, set()).add(EXTRA if one.what == EXTRA else one.field)
            else:
                others.add(one.fact)
        self.left.update((fact, _UNSAID) for fact in drifts.keys() & others)
        self.left.update(self._held(rows, {fact for fact, moved in drifts.items() if EXTRA in moved}))
        self.left.update(self._others_identities(state, {fact for fact in drifts if isinstance(fact, Did)}))
        self.left.update(self._waiting(drifts))
        wanted = drifts.keys() - self.left.keys()
        self._identities(state, {fact for fact in wanted if isinstance(fact, Did) and drifts[fact] & _OF_IDENTITY})
        self._sizes(rows, {fact for fact in wanted if isinstance(fact, Replica) and "bytes" in drifts[fact]})
        self._open_data(state, {fact for fact in wanted if isinstance(fact, Did) and drifts[fact] & _OF_OPEN_DATA})
        done = self._materialise(set(wanted), now_ms)
        return Mended(tuple(sorted(done, key=key_bytes)), self.left, found.more)

    # ---- what is not touched

    def _held(self, rows: Rows, extra: Collection[Fact]) -> Iterator[tuple[Fact, str]]:
        """Rows that the catalogue does not show, and stay."""
        edges = {fact: fact.child for fact in extra if isinstance(fact, (Attachment, Constituent))}
        known = rows.read_dids(set(edges.values()))
        below = {did: {did} if row.identity.type == FILE else {did, *rows.below({did}, set)} for did, row in known.items()}
        inside: set[Did] = set().union(*below.values())
        for table, how in ((_LOCKS, "locks"), (_DATASET_LOCKS, "locks"), (_RULES, "rules")):
            there = self._among(f"{table.fullname} c", inside)
            for fact in [fact for fact, child in edges.items() if not there.isdisjoint(below.get(child, ()))]:
                yield fact, f"local {how} hold {edges.pop(fact)}, or what is in it: end them, or take it out yourself"
        replicas = {fact: local.id for fact in extra if isinstance(fact, Replica) and (local := rows.rse_of(fact.rse)) is not None}
        locked = self._locked({fact.did for fact in replicas})
        yield from ((fact, "local rules lock it") for fact, rse_id in replicas.items() if (fact.did, rse_id) in locked)
        owners = self._owners({fact for fact in extra if isinstance(fact, Did)})
        for did, owner in owners.items():
            if owner not in self._proxies:
                yield did, f"account {owner!r} made it here, in a scope of another instance: erase it, or give it another name"
        yield from ((fact, "no instance lends it: remove the RSE in Rucio") for fact in extra if isinstance(fact, Rse))

    def _others_identities(self, state: SqlState, dids: Collection[Did]) -> Iterator[tuple[Fact, str]]:
        """DIDs that are another one here, and not a row of the bridge's that was edited."""
        entries, rows, owners = state.entries(dids), self._rows().read_dids(dids), self._owners(dids)
        for did, row in rows.items():
            entry = entries.get(did)
            if not isinstance(entry, DidEntry) or row.identity.agrees(entry.identity):
                continue
            if row.identity.type != entry.identity.type or row.identity.type != FILE or owners.get(did) not in self._proxies:
                yield did, f"it exists here as {row.identity}, of account {owners.get(did)!r}: erase it, and repair again"

    def _waiting(self, facts: Collection[Fact]) -> Iterator[tuple[Fact, str]]:
        """What hangs on something that is parked."""
        needs = {end for fact in facts for end in ends_of(fact)}
        waiting = parked.among(self.session, needs) if needs else set()
        for fact in facts:
            end = next((end for end in ends_of(fact) if end in waiting), None)
            if end is not None:
                yield fact, f"{parked.WAITS_FOR}{end}, which is parked ('nsync conflict list')"

    # ---- what materialise leaves to its operator

    def _identities(self, state: SqlState, dids: Collection[Did]) -> None:
        said = []
        for did, entry in state.entries(dids).items():
            if isinstance(did, Did) and isinstance(entry, DidEntry):
                one = entry.identity
                sums = {"adler32": one.adler32.hex() if one.adler32 else None, "md5": one.md5.hex() if one.md5 else None}
                said.append({**_at(did), "bytes": one.size, **sums})
        for statement in _IDENTITIES if said else ():
            self.session.execute(statement, said)

    def _sizes(self, rows: Rows, replicas: Collection[Replica]) -> None:
        local = {fact: rows.rse_of(fact.rse) for fact in replicas}
        said = [{**_at(fact.did), "rse": rse.id} for fact, rse in local.items() if rse is not None]
        if said:
            self.session.execute(_SIZE, said)

    def _open_data(self, state: SqlState, dids: Collection[Did]) -> None:
        """Take away what local users opened, of which the catalogue has nothing; of other states there is no way back but this."""
        rows = self._rows().read_dids(dids)
        closed: list[dict[str, str]] = []
        drafts: list[dict[str, str]] = []
        for did, entry in state.entries(dids).items():
            row = rows.get(did) if isinstance(did, Did) else None
            if not isinstance(did, Did) or not isinstance(entry, DidEntry) or row is None or entry.opendata is not None:
                continue
            if (entry.doi, entry.record, entry.opendata_meta) == (None, None, None):
                closed.append(_at(did))
            elif row.opendata is not None:
                drafts.append(_at(did))
        for statement, said in ((_FORGET_OPEN, closed), (_DRAFT, drafts)):
            if said:
                self.session.execute(statement, said)

    # ---- the rest

    def _materialise(self, wanted: set[Fact], now_ms: int) -> set[Fact]:
        """Write what fits of `wanted`: all together, without those of which it was told that they do not."""
        while wanted:
            state = self._state()
            state.changes.add(sorted(wanted, key=key_bytes))
            with self.session.begin_nested() as attempt:
                Materialise(self.session, state, self._rows(), self.me.name).run(BATCH, now_ms)
                unfit = {one.fact: one.reason for one in parked.listing(self.session, BATCH)}
                if unfit:
                    attempt.rollback()
            if not unfit:
                break
            causes = {fact: reason for fact, reason in unfit.items() if not reason.startswith(parked.WAITS_FOR)}
            dropped = {fact for fact in wanted if fact in causes or not causes.keys().isdisjoint(ends_of(fact))}
            dropped = dropped or wanted  # the cause is none of these
            first = next(iter(causes.values()), "something that it hangs on does not fit")
            self.left.update((fact, causes.get(fact, first)) for fact in dropped)
            wanted -= dropped
        return self._checked(wanted)

    def _checked(self, wanted: set[Fact]) -> set[Fact]:
        """Those whose rows are right now; the others are told."""
        entries, rows = self._state().entries(wanted), self._rows().read(wanted)
        right = {fact for fact in wanted if matches(entries.get(fact), rows.get(fact))}
        kept = parked.reasons(self.session.connection(), wanted)
        self.left.update((fact, kept.get(fact, "its row cannot be made as the catalogue has it")) for fact in wanted - right)
        LOG.info("%d facts that drifted are as the catalogue has them again; %d are left", len(right), len(self.left))
        return right

    # ---- leaves

    def _among(self, source: str, dids: Collection[Did]) -> set[Did]:
        """Those of `dids` that `source` has."""
        names = {names_of(did): did for did in dids}
        return {names[scope, name] for scope, name in look_up(self.session, "c.scope, c.name", source, ("c.scope", "c.name"), list(names))}

    def _locked(self, dids: Collection[Did]) -> set[tuple[Did, str]]:
        """The replicas of `dids` that local rules lock, with the ids of their RSEs."""
        names = {names_of(did): did for did in dids}
        source = f"{REPLICAS.fullname} c JOIN (SELECT 1 AS one) o ON c.lock_cnt > 0"
        rows = look_up(self.session, f"c.scope, c.name, {RSE_ID}", source, ("c.scope", "c.name"), list(names))
        return {(names[scope, name], rse_id) for scope, name, rse_id in rows}

    def _owners(self, dids: Collection[Did]) -> Mapping[Did, str]:
        names = {names_of(did): did for did in dids}
        rows = look_up(self.session, "c.scope, c.name, c.account", f"{DIDS.fullname} c", ("c.scope", "c.name"), list(names))
        return {names[scope, name]: account for scope, name, account in rows}


def _at(did: Did) -> dict[str, str]:
    scope, name = names_of(did)
    return {"scope": scope, "name": name}


_UNSAID = "something else of it was changed here too, and is not said yet, or waits: 'nsync bridge audit' lets it be published"
_OF_IDENTITY = {"bytes", "adler32", "md5"}
_OF_OPEN_DATA = {keys.OPENDATA, keys.DOI, fields.RECORD, fields.OPENDATA_META}
_SUMS = "bytes = COALESCE(:bytes, bytes), adler32 = COALESCE(:adler32, adler32), md5 = COALESCE(:md5, md5)"
_AT = "scope = :scope AND name = :name"
_FORGET_OPEN = text(f"DELETE FROM {OPEN.fullname} WHERE {_AT}")
_DRAFT = text(f"UPDATE {OPEN.fullname} SET state = 'D' WHERE {_AT}")
_IDENTITIES = [
    text(f"UPDATE {DIDS.fullname} SET {_SUMS} WHERE {_AT}"),
    text(f"UPDATE {REPLICAS.fullname} SET {_SUMS} WHERE {_AT}"),
    text(f"UPDATE {CONTENTS.fullname} SET {_SUMS} WHERE child_scope = :scope AND child_name = :name"),
]
"""As Rucio has them: in the file's row, and copied."""
_SIZE = text(
    f"UPDATE {REPLICAS.fullname} SET bytes = (SELECT d.bytes FROM {DIDS.fullname} d WHERE d.scope = :scope AND d.name = :name) "
    f"WHERE {_AT} AND rse_id = :rse"
)
