"""What users and daemons do to one Rucio database, each with the core's own functions.

Users work in few names, so that they meet. What Rucio refuses does not happen. Daemons are the functions that they call, each with its
own transactions, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Optional

from rucio.common.exception import UnsupportedOperation
from rucio.common.types import InternalScope
from rucio.core import did as core_did
from rucio.core import lock, opendata, replica, rse, rule
from rucio.core.rse_counter import get_updated_rse_counters, update_rse_counter
from rucio.db.sqla import models
from rucio.db.sqla.constants import BadFilesStatus, DIDType, OpenDataDIDState, ReplicaState, RequestState
from sqlalchemy import delete, select

from nsync.namespace.keys import Did
from tests.support.instances import REFUSALS, ROOT, Instance

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


def do(instance: Instance, act: Act) -> bool:
    """What Rucio refuses does not happen. Tells whether the last step of it did."""
    done = False
    for step in DEEDS[act.what]:
        done = False
        with suppress(*REFUSALS):
            step(instance, act.on, act.other)
            done = True
    return done


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


def _unreplicate(instance: Instance, did: Did, _: Any) -> None:
    _refuse_if_locked(instance, did)
    instance.delete_replicas(did.scope, [did.name])


def _refuse_if_locked(instance: Instance, did: Did) -> None:
    """Rucio's function deletes what it is given; its reaper gives it no replica that a rule locks."""
    if instance.query("SELECT 1 FROM locks WHERE scope = :scope AND name = :name", scope=did.scope, name=did.name):
        raise UnsupportedOperation(f"{did} is locked")


def _untape(instance: Instance, did: Did, _: Any) -> None:
    _refuse_if_locked(instance, did)
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
    "unreplicate": [_unreplicate],
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
