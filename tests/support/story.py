"""Three Rucio databases, and what their users, daemons, bridges and networks do to them.

Users work through Rucio's own core, in few names: in the scopes atlas, cms and belle2, the shared one atlas.shared, and a private one
each. What Rucio refuses does not happen. Daemons are the functions of the core that they call, each with its own transaction. Whatever a
bridge does in between must leave alone what is each instance's own: see `OWN`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Optional

from rucio.common.types import InternalScope
from rucio.core import did as core_did
from rucio.core import lock, opendata, replica, rse, rule
from rucio.core.rse_counter import get_updated_rse_counters, update_rse_counter
from rucio.db.sqla import models
from rucio.db.sqla.constants import BadFilesStatus, DIDType, OpenDataDIDState, ReplicaState, RequestState
from sqlalchemy import delete, select

from nsync.auth.keys import verify
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Replica, Rse, Scope, ends_of
from nsync.rucio_bridge.bridge import Bridge
from tests.support.federation import AUTHORITY, KEYS, NAMES
from tests.support.instances import EXPRESSION, REFUSALS, ROOT, Instance, settle

FILES, ARCHIVES, DATASETS, CONTAINERS = ("f1", "f2", "f3"), ("a1.zip",), ("d1", "d2"), ("c1", "c2")
DOIS = ("10.5072/ATLAS.1", "10.5072/CMS.1")
TAPE = "TAPE"
"""The second RSE of each instance, non-deterministic."""

# ---- what users do


class Act(NamedTuple):
    """A user of instance `who` does `what`."""

    who: str
    what: str
    on: Did
    other: Any = None


Deed = Callable[[Instance, Did, Any], None]


def do(instance: Instance, act: Act) -> None:
    """What Rucio refuses does not happen."""
    for step in DEEDS[act.what]:
        with suppress(*REFUSALS):
            step(instance, act.on, act.other)


def _key(did: Did) -> dict[str, Any]:
    return {"scope": InternalScope(did.scope), "name": did.name}


def _files(instance: Instance, did: Did, size: int) -> None:
    """Rucio takes a replica whose size is not its file's, if only the caller gives it: an upload compares them."""
    if _size(instance, did) in (None, size):
        instance.add_files(did.scope, [did.name], size, f"{size:08d}")


def _size(instance: Instance, did: Did) -> Optional[int]:
    known = instance.query("SELECT bytes FROM dids WHERE scope = :scope AND name = :name", scope=did.scope, name=did.name)
    return known[0][0] if known else None


def _tape(instance: Instance, did: Did, size: int) -> None:
    if _size(instance, did) in (None, size):
        with instance.session() as session:
            file = {**_key(did), "bytes": size, "adler32": f"{size:08d}", "pfn": f"file://localhost:0/tape/{did.scope}/x/{did.name}"}
            replica.add_replicas(rse.get_rse_id(TAPE, session=session), [file], ROOT, session=session)


def _untape(instance: Instance, did: Did, _: Any) -> None:
    with instance.session() as session:
        replica.delete_replicas(rse.get_rse_id(TAPE, session=session), [_key(did)], session=session)


def _collection(instance: Instance, did: Did, _: Any) -> None:
    instance.add_did(did.scope, did.name, DIDType.CONTAINER if did.name in CONTAINERS else DIDType.DATASET)


def _monotonic(instance: Instance, did: Did, _: Any) -> None:
    with instance.session() as session:
        core_did.add_did(**_key(did), did_type=DIDType.DATASET, account=ROOT, statuses={"monotonic": True}, session=session)


def _made(instance: Instance, _: Did, child: Did) -> None:
    """The child too, where this instance may make one."""
    if child.scope in (instance.name, "atlas.shared", f"{instance.name}.private"):
        (_files if child.name in FILES else _collection)(instance, child, 1)


def _attach(instance: Instance, did: Did, child: Did) -> None:
    instance.attach(did.scope, did.name, [(child.scope, child.name)])


def _fill(instance: Instance, did: Did, names: Sequence[str]) -> None:
    for name in names:
        _files(instance, Did(did.scope, name), 1)
    instance.attach(did.scope, did.name, [(did.scope, name) for name in names])


def _close(instance: Instance, did: Did, _: Any) -> None:
    instance.set_open(did.scope, did.name, False)


def _draft(instance: Instance, did: Did, _: Any) -> None:
    instance.add_open_data(did.scope, did.name)


def _state(state: OpenDataDIDState) -> Deed:
    return lambda instance, did, _: instance.set_open_data(did.scope, did.name, state=state)


def _record(instance: Instance, did: Did, number: int) -> None:
    with instance.session() as session:
        opendata.update_opendata_did(**_key(did), record_id=number, session=session)


def _document(instance: Instance, did: Did, document: dict[str, Any]) -> None:
    if instance.engine.dialect.name == "postgresql":
        with instance.session() as session:
            opendata.update_opendata_did(**_key(did), meta=document, session=session)


def _meta(instance: Instance, did: Did, said: tuple[str, Any]) -> None:
    with instance.session() as session:
        core_did.set_metadata(**_key(did), key=said[0], value=said[1], session=session)


def _forget(instance: Instance, did: Did, key: str) -> None:
    if instance.engine.dialect.name == "postgresql":
        with instance.session() as session:
            core_did.delete_metadata(**_key(did), key=key, session=session)


def _local_state(state: ReplicaState) -> Deed:
    def deed(instance: Instance, did: Did, _: Any) -> None:
        with instance.session() as session:
            at = rse.get_rse_id("DISK", session=session)
            replica.update_replicas_states([{**_key(did), "rse_id": at, "state": state}], session=session)

    return deed


def _declare_bad(instance: Instance, did: Did, _: Any) -> None:
    """As a user who could not read a foreign replica."""
    with instance.session() as session:
        at = [r for r in rse.list_rses(session=session) if "_" in r["rse"]]
        bad = [{**_key(did), "rse_id": one["id"], "rse": one["rse"]} for one in at[:1]]
        replica.declare_bad_file_replicas(bad, "unreadable", ROOT, BadFilesStatus.BAD, session=session)


def _move_door(instance: Instance, _: Did, number: int) -> None:
    with instance.session() as session:
        at = rse.get_rse_id("DISK", session=session)
        (door,) = rse.get_rse_protocols(at, session=session)["protocols"]
        data = {"prefix": f"/moved/{number}/"}
        rse.update_protocols(at, door["scheme"], data, door["hostname"], door["port"], session=session)


def _tombstone(instance: Instance, did: Did, _: Any) -> None:
    with instance.session() as session:
        replica.set_tombstone(rse.get_rse_id("DISK", session=session), **_key(did), session=session)


def _expire(instance: Instance, did: Did, _: Any) -> None:
    """As 'rucio did remove' does, a day ago."""
    with instance.session() as session:
        core_did.set_metadata(**_key(did), key="lifetime", value=-86_400, session=session)


def _unrule(instance: Instance, did: Did, _: Any) -> None:
    with instance.session() as session:
        for (rule_id,) in session.execute(select(models.ReplicationRule.id).filter_by(**_key(did)).limit(1)).all():
            rule.delete_rule(rule_id, session=session)


DEEDS: Mapping[str, Sequence[Deed]] = {
    "files": [_files],
    "tape": [_tape],
    "untape": [_untape],
    "collection": [_collection],
    "monotonic": [_monotonic],
    "dataset": [_collection, _fill],
    "publish": [_collection, _fill, _close, _draft, _state(OpenDataDIDState.PUBLIC)],
    "nest": [_collection, _made, _attach],
    "attach": [_attach],
    "pack": [lambda i, did, child: _files(i, did, 1), lambda i, did, child: _files(i, child, 1), _attach],
    "detach": [lambda i, did, child: i.detach(did.scope, did.name, [(child.scope, child.name)])],
    "close": [_close],
    "reopen": [lambda i, did, _: i.set_open(did.scope, did.name, True)],
    "draft": [_draft],
    "public": [_state(OpenDataDIDState.PUBLIC)],
    "suspended": [_state(OpenDataDIDState.SUSPENDED)],
    "doi": [_draft, lambda i, did, doi: i.set_open_data(did.scope, did.name, doi=doi)],
    "record": [_draft, _record],
    "document": [_draft, _document],
    "meta": [_meta],
    "forget": [_forget],
    "bad": [_local_state(ReplicaState.BAD)],
    "available": [_local_state(ReplicaState.AVAILABLE)],
    "declare bad": [_declare_bad],
    "move door": [_move_door],
    "tombstone": [_tombstone],
    "rule": [lambda i, did, _: i.add_rule(did.scope, did.name)],
    "unrule": [_unrule],
    "expire": [_expire],
    "delete": [lambda i, did, _: i.delete_did(did.scope, did.name)],
    "unreplicate": [lambda i, did, _: i.delete_replicas(did.scope, [did.name])],
}

# ---- what daemons do, once


def judge_evaluator(instance: Instance) -> None:
    with instance.session() as session:
        waiting = rule.get_updated_dids(None, None, session=session)
    for row in waiting:
        with suppress(*REFUSALS), instance.session() as session:
            rule.re_evaluate_did(row.scope, row.name, row.rule_evaluation_action, session=session)
        with instance.session() as session:
            rule.delete_updated_did(row.id, session=session)


def abacus(instance: Instance) -> None:
    with instance.session() as session:
        for rse_id in get_updated_rse_counters(None, None, session=session):
            update_rse_counter(rse_id, session=session)
    with instance.session() as session:
        for request in replica.get_cleaned_updated_collection_replicas(1, 0, session=session):
            replica.update_collection_replica(request, session=session)


def undertaker(instance: Instance) -> None:
    with suppress(*REFUSALS), instance.session() as session:
        core_did.delete_dids(core_did.list_expired_dids(session=session), ROOT, expire_rules=True, session=session)


def judge_cleaner(instance: Instance) -> None:
    """Expired rules go; the undertaker makes them so."""
    with instance.session() as session:
        expired = list(session.execute(select(models.ReplicationRule.id).where(models.ReplicationRule.expires_at < utc_soon())).scalars())
    for rule_id in expired:
        with suppress(*REFUSALS), instance.session() as session:
            rule.delete_rule(rule_id, session=session)


def utc_soon() -> datetime:
    return datetime.utcnow() + timedelta(seconds=1)


def reaper(instance: Instance) -> None:
    """Mark what has a tombstone and no lock, then delete it: two transactions. It passes by RSEs where nothing may be deleted."""
    with instance.session() as session:
        at = [one["id"] for one in rse.list_rses(session=session) if one["availability_delete"]]
    for rse_id in at:
        with instance.session() as session:
            found = replica.list_and_mark_unlocked_replicas(100, rse_id=rse_id, delay_seconds=0, session=session)
        with suppress(*REFUSALS), instance.session() as session:
            replica.delete_replicas(rse_id, [{"scope": one["scope"], "name": one["name"]} for one in found], session=session)


def transmogrifier(instance: Instance) -> None:
    with instance.session() as session:
        core_did.set_new_dids(
            [{"scope": one["scope"], "name": one["name"]} for one in core_did.list_new_dids(None, session=session)], None, session=session
        )


def conveyor(instance: Instance) -> None:
    """What rules asked for has arrived, but for nobody's files."""
    with instance.session() as session:
        asked = list(session.execute(select(models.Request).where(models.Request.state != RequestState.DONE)).scalars())
        for request in asked:
            at = {"scope": request.scope, "name": request.name, "rse_id": request.dest_rse_id}
            replica.update_replicas_states([{**at, "state": ReplicaState.AVAILABLE}], session=session)
            lock.successful_transfer(**at, nowait=False, session=session)
        session.execute(delete(models.Request))


DAEMONS: Mapping[str, Callable[[Instance], None]] = {
    one.__name__: one for one in (judge_evaluator, judge_cleaner, abacus, undertaker, reaper, transmogrifier, conveyor)
}

# ---- what is each instance's own (R7.4): no bridge may change it

_LOCAL = "NOT EXISTS (SELECT 1 FROM rse_attr_map a WHERE a.rse_id = r.rse_id AND a.key = 'nsync_origin')"
OWN = {
    "rules": "SELECT * FROM rules",
    "locks": "SELECT * FROM locks",
    "dataset locks": "SELECT scope, name, rule_id, rse_id, account, state FROM dataset_locks",
    "requests": "SELECT * FROM requests",
    "quotas": "SELECT * FROM account_limits",
    "use of quotas": "SELECT * FROM account_usage",
    "counts of locks": "SELECT * FROM updated_account_counters",
    "own replicas": f"SELECT scope, name, rse_id, bytes, path, state, lock_cnt, tombstone FROM replicas r WHERE {_LOCAL}",
    "followers": "SELECT * FROM dids_followed",
    "own storage": f"SELECT * FROM rse_protocols r WHERE {_LOCAL}",
}
EXPIRY = "SELECT scope, name, expired_at, eol_at, suppressed FROM dids"


def own(instance: Instance) -> dict[str, Any]:
    found: dict[str, Any] = {what: frozenset(instance.query(query)) for what, query in OWN.items()}
    found["expiry"] = {(scope, name): tuple(rest) for scope, name, *rest in instance.query(EXPIRY)}
    return found


def check_own(instance: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for what in OWN:
        assert after[what] == before[what], f"the bridge of {instance} changed {what}: {sorted(before[what] ^ after[what], key=repr)}"
    there = before["expiry"].keys() & after["expiry"].keys()
    assert {did: after["expiry"][did] for did in there} == {did: before["expiry"][did] for did in there}, f"{instance}: expiry"
    new = after["expiry"].keys() - there
    assert not any(after["expiry"][did][0] for did in new), f"{instance}: what is new expires"


# ---- what they changed


class Changes:
    """What the users of one instance did to its rows: where its rows may differ from the catalogue, and only there (R7.5)."""

    def __init__(self) -> None:
        self.added: set[Fact] = set()
        self.removed: set[Fact] = set()
        self.changed: set[Fact] = set()
        self.reachable: set[Did] = set()
        """Everything that was below a DID that is or was PUBLIC."""

    def note(self, before: Mapping[Fact, object], after: Mapping[Fact, object]) -> None:
        self.added |= after.keys() - before.keys()
        self.removed |= before.keys() - after.keys()
        self.changed |= {fact for fact in before.keys() & after.keys() if before[fact] != after[fact]}

    def note_reachable(self, instance: Instance) -> None:
        found = {Did(*row) for row in instance.query("SELECT scope, name FROM dids_opendata WHERE state <> 'D'")}
        edges = [fact for fact in rows_of(instance) if isinstance(fact, (Attachment, Constituent))]
        while more := {Did(*edge[3:5]) for edge in edges if Did(*edge[1:3]) in found} - found:
            found |= more
        self.reachable |= found


_METADATA = ", ".join(f"d.{name}" for name in (*sorted(fields.METADATA), "monotonic", "hidden", "obsolete"))
_OPEN = "o.state, i.doi, n.record_id"
_HANGING = (
    "LEFT JOIN dids_opendata o ON o.scope = d.scope AND o.name = d.name LEFT JOIN dids_opendata_doi i ON i.scope = d.scope "
    "AND i.name = d.name LEFT JOIN dids_opendata_record n ON n.scope = d.scope AND n.name = d.name"
)
_DOCUMENTS = (
    " LEFT JOIN did_meta m ON m.scope = d.scope AND m.name = d.name LEFT JOIN dids_opendata_meta w ON w.scope = d.scope AND w.name = d.name"
)


def rows_of(instance: Instance) -> dict[Fact, object]:
    """Every DID, attachment, constituent and replica of the database, with what may change of it."""
    found: dict[Fact, object] = {}
    has_json = instance.engine.dialect.name == "postgresql"
    json_columns, json_tables = (", CAST(m.meta AS text), CAST(w.meta AS text)", _DOCUMENTS) if has_json else ("", "")
    dids = f"SELECT d.scope, d.name, d.did_type, d.is_open, {_OPEN}, {_METADATA}{json_columns} FROM dids d {_HANGING}{json_tables}"
    for scope, name, *rest in instance.query(dids):
        found[Did(scope, name)] = tuple(rest)
    for kind, table in ((Attachment, "contents"), (Constituent, "archive_contents")):
        for scope, name, child_scope, child_name in instance.query(f"SELECT scope, name, child_scope, child_name FROM {table}"):
            found[kind(Did(scope, name), Did(child_scope, child_name))] = ()
    replicas = (
        "SELECT r.scope, r.name, s.rse, a.value, r.state, r.path FROM replicas r JOIN rses s ON s.id = r.rse_id "
        "LEFT JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin'"
    )
    for scope, name, rse_name, origin, state, path in instance.query(replicas):
        place = Rse(instance.name, rse_name) if origin is None else Rse(origin, rse_name[len(origin) + 1 :])
        found[Replica(Did(scope, name), place)] = (state, path)
    return found


# ---- the story


class Story:
    """Three instances, and what happened to them."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = {instance.name: instance for instance in instances}
        for index, instance in enumerate(self.instances.values()):
            instance.now_ms += 10_000 + (0, 9_000, -9_000)[index]  # clocks are not equal
            add_tape(instance)
        self.changes = {name: Changes() for name in NAMES}
        self._own: dict[str, dict[str, Any]] = {}

    def act(self, act: Act) -> None:
        self.local(act.who, lambda instance: do(instance, act))

    def run(self, who: str, daemon: str) -> None:
        self.local(who, DAEMONS[daemon])

    def local(self, who: str, what: Callable[[Instance], None]) -> None:
        """Let something happen to a database that is none of the bridge's doing."""
        instance = self.instances[who]
        before = rows_of(instance)
        what(instance)
        self.changes[who].note(before, rows_of(instance))
        self.changes[who].note_reachable(instance)
        self._own.pop(who, None)

    def work(self, who: str) -> int:
        """The bridge publishes and applies what there is."""
        instance = self.instances[who]
        before = self._own.get(who) or own(instance)
        done = instance.work()
        self._own[who] = own(instance) if done else before
        check_own(who, before, self._own[who])
        self.changes[who].note_reachable(instance)
        return done

    def fetch(self, who: str, source: str, seed: int = 0) -> None:
        """`who` takes everything that `source` has; with a seed, some twice, in any order and grouping."""
        reader, other = self.instances[who], self.instances[source]
        if not seed:
            reader.fetch(other)
            return
        rng = random.Random(seed)
        frames = other.frames()
        frames += rng.sample(frames, len(frames) // 2)
        rng.shuffle(frames)
        while frames:
            size = rng.randint(1, 4)
            batch, frames = frames[:size], frames[size:]
            reader.bridge.receive(batch, source)
            if rng.random() < 0.3:
                self.work(who)

    def restart(self, who: str) -> None:
        """The node begins anew."""
        instance = self.instances[who]
        instance.bridge = Bridge(instance.engine, AUTHORITY, instance.bridge.me, KEYS[who].sign, verify, EXPRESSION)

    def settle(self) -> None:
        """Everybody hears everything, twice: what some rows waited for came later, and is tried again now and then."""
        before = {name: own(instance) for name, instance in self.instances.items()}
        settle(list(self.instances.values()))
        for instance in self.instances.values():
            instance.bridge.retry_parked(instance.now_ms)
        settle(list(self.instances.values()))
        for name, instance in self.instances.items():
            self._own[name] = own(instance)
            check_own(name, before[name], self._own[name])
            self.changes[name].note_reachable(instance)


def add_tape(instance: Instance) -> None:
    """A non-deterministic RSE that is lent."""
    with instance.session() as session:
        at = rse.add_rse(TAPE, deterministic=False, session=session)
        read_write = {"read": 1, "write": 1, "delete": 1}
        domains = {"lan": read_write, "wan": {**read_write, "third_party_copy_read": 1, "third_party_copy_write": 1}}
        impl = {"impl": "rucio.rse.protocols.posix.Default", "scheme": "file", "hostname": "localhost", "port": 0, "prefix": "/tape/"}
        rse.add_protocol(at, {**impl, "domains": domains}, session=session)
        rse.add_rse_attribute(at, "OpenData", True, session=session)


def dids_of(fact: Fact) -> tuple[Did, ...]:
    """The DIDs that a fact is about."""
    return (fact,) if isinstance(fact, Did) else tuple(end for end in ends_of(fact) if isinstance(end, Did))


def names_of(fact: Fact) -> set[tuple[str, ...]]:
    """Scopes, RSEs and DIDs of a fact as rows name them."""
    if isinstance(fact, (Scope, Rse)):
        return {tuple(fact[1:])}
    return {(did.scope, did.name) for did in dids_of(fact)}
