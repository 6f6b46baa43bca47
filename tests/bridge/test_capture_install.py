"""Capture on both back-ends: what the triggers put into the outbox, for every table and every shared column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rucio.common.types import InternalScope
from rucio.core import did as core_did
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDType, ReplicaState
from sqlalchemy import Table, delete, insert, update

from nsync.namespace import fields
from nsync.rucio_bridge import triggers
from tests.support.federations import lone
from tests.support.instances import Instance

OutboxRow = tuple[Any, ...]
OUTBOX = "SELECT DISTINCT kind, a, b, c, d FROM nsync_outbox"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def atlas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """An instance that shares its scope, which has a dataset d1 with the file f1; nothing waits."""
    with lone(request, request.param, tmp_path) as instance:
        prepare(instance)
        yield instance


def prepare(instance: Instance) -> None:
    instance.add_scope("atlas")
    instance.add_scope("private")
    instance.add_files("atlas", ["f1"])
    instance.add_did("atlas", "d1")
    instance.attach("atlas", "d1", [("atlas", "f1")])
    outbox(instance)


def outbox(instance: Instance) -> set[OutboxRow]:
    """What waits; and let it wait no more."""
    with instance.engine.begin() as connection:
        found = {tuple(row) for row in connection.exec_driver_sql(OUTBOX)}
        connection.exec_driver_sql("DELETE FROM nsync_outbox")
    return found


def execute(instance: Instance, *statements: Any) -> None:
    with instance.session() as session:
        for statement in statements:
            session.execute(statement)


def change(instance: Instance, model: Any, name: str, **values: Any) -> None:
    table: Table = model.__table__
    execute(instance, update(table).where(table.c.scope == InternalScope("atlas"), table.c.name == name).values(values))


def did(name: str) -> OutboxRow:
    return ("did", "atlas", name, None, None)


NUMBERS = {"events", "run_number", "task_id", "panda_id", "lumiblocknr", "bytes"}
FLAGS = {"transient", fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE}
COLUMNS: dict[str, Any] = {
    **{column: "x" for column in (*fields.METADATA, "adler32", "md5")},
    **{column: 7 for column in NUMBERS},
    **{column: True for column in FLAGS},
    "guid": "5" * 32,
    "is_open": False,
}


def test_each_shared_column_of_a_did_counts_once(atlas: Instance) -> None:
    for column, value in COLUMNS.items():
        change(atlas, models.DataIdentifier, "d1", **{column: value})
        assert outbox(atlas) == {did("d1")}, column
        change(atlas, models.DataIdentifier, "d1", **{column: value})
        assert outbox(atlas) == set(), f"{column}: the same value once more is no change"


def test_updates_without_meaning_are_not_captured(atlas: Instance) -> None:
    """touch, transmogrifier, judge, abacus, undertaker and reaper."""
    at = models.DataIdentifier.__table__.c.created_at.type.python_type(2026, 1, 1)
    for column, value in {"is_new": None, "accessed_at": at, "access_cnt": 3, "expired_at": at, "purge_replicas": False}.items():
        change(atlas, models.DataIdentifier, "d1", **{column: value})
    change(atlas, models.RSEFileAssociation, "f1", lock_cnt=1, tombstone=at, accessed_at=at)
    change(atlas, models.DataIdentifierAssociation, "d1", rule_evaluation=True)
    with atlas.session() as session:
        core_did.touch_dids([{"scope": InternalScope("atlas"), "name": "d1", "type": DIDType.DATASET, "accessed_at": at}], session=session)
        core_did.set_new_dids([{"scope": InternalScope("atlas"), "name": "d1"}], None, session=session)
    assert outbox(atlas) == set()


def test_json_metadata_counts(atlas: Instance) -> None:
    table = models.DidMeta.__table__
    scope = InternalScope("atlas")
    execute(atlas, insert(table).values(scope=scope, name="d1", meta=json.dumps({"a": 1}), did_type=DIDType.DATASET))
    assert outbox(atlas) == {did("d1")}
    change(atlas, models.DidMeta, "d1", meta=json.dumps({"a": 2}))
    assert outbox(atlas) == {did("d1")}
    change(atlas, models.DidMeta, "d1", did_type=None)
    assert outbox(atlas) == set()
    execute(atlas, delete(table))
    assert outbox(atlas) == {did("d1")}


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        (models.OpenDataDOI, {"doi": "10.1234/a"}, {"doi": "10.1234/b"}),
        (models.OpenDataRecord, {"record_id": 1}, {"record_id": 2}),
        (models.OpenDataMeta, {"meta": '{"a": 1}'}, {"meta": '{"a": 2}'}),
    ],
)
def test_open_data_counts_whatever_its_scope(atlas: Instance, model: Any, first: dict[str, Any], second: dict[str, Any]) -> None:
    atlas.add_did("private", "d1")
    assert outbox(atlas) == set()
    atlas.add_open_data("private", "d1")
    wanted = {("did", "private", "d1", None, None)}
    assert outbox(atlas) == wanted
    scope, table = InternalScope("private"), model.__table__
    execute(atlas, insert(table).values(scope=scope, name="d1", **first))
    assert outbox(atlas) == wanted
    execute(atlas, update(table).values(second))
    assert outbox(atlas) == wanted
    execute(atlas, update(table).values(second))
    assert outbox(atlas) == set()
    execute(atlas, delete(table))
    assert outbox(atlas) == wanted


def test_a_cascade_is_seen(atlas: Instance) -> None:
    """Rucio deletes a DID's row, and the database what hangs on it."""
    atlas.add_did("atlas", "d2")
    atlas.add_open_data("atlas", "d2")
    scope = InternalScope("atlas")
    execute(atlas, insert(models.OpenDataDOI.__table__).values(scope=scope, name="d2", doi="10.1234/a"))
    outbox(atlas)
    execute(atlas, delete(models.OpenDataDid.__table__))
    count = "SELECT count(*) FROM nsync_outbox"
    assert atlas.query(count) == [(2,)], "one for the entry and one for the DOI that went along"
    assert outbox(atlas) == {did("d2")}
    execute(atlas, delete(models.RSEFileAssociation.__table__))
    file = models.DataIdentifier.__table__
    execute(atlas, delete(file).where(file.c.name == "f1"))
    assert outbox(atlas) >= {("attachment", "atlas", "d1", "atlas", "f1"), did("f1")}


def test_attachments_constituents_and_replicas_count(atlas: Instance) -> None:
    scope = InternalScope("atlas")
    (rse_id,) = {row[0] for row in atlas.query("SELECT replace(CAST(rse_id AS VARCHAR(36)), '-', '') FROM replicas")}
    table = models.ConstituentAssociation.__table__
    atlas.add_files("atlas", ["a.zip"])
    assert outbox(atlas) == {did("a.zip"), ("replica", "atlas", "a.zip", rse_id, None)}
    execute(atlas, insert(table).values(scope=scope, name="a.zip", child_scope=scope, child_name="f1", bytes=10))
    assert outbox(atlas) == {("constituent", "atlas", "a.zip", "atlas", "f1")}
    execute(atlas, delete(table))
    assert outbox(atlas) == {("constituent", "atlas", "a.zip", "atlas", "f1")}
    atlas.detach("atlas", "d1", [("atlas", "f1")])
    assert ("attachment", "atlas", "d1", "atlas", "f1") in outbox(atlas)
    for values in ({"state": ReplicaState.BAD}, {"path": "/a/b"}, {"bytes": 11}):
        change(atlas, models.RSEFileAssociation, "f1", **values)
        assert outbox(atlas) == {("replica", "atlas", "f1", rse_id, None)}


def test_storage_counts(atlas: Instance) -> None:
    rse, protocol, attribute = models.RSE.__table__, models.RSEProtocol.__table__, models.RSEAttrAssociation.__table__
    (rse_id,) = {row[0] for row in atlas.query("SELECT replace(CAST(id AS VARCHAR(36)), '-', '') FROM rses WHERE rse = 'DISK'")}
    wanted = {("rse", rse_id, None, None, None)}
    for statement in (
        update(rse).where(rse.c.id == rse_id).values(rse="DISK2"),
        update(protocol).where(protocol.c.rse_id == rse_id).values(prefix="/other/"),
        insert(attribute).values(rse_id=rse_id, key="site", value="X"),
        update(attribute).where(attribute.c.rse_id == rse_id, attribute.c.key == "site").values(value="Y"),
        delete(attribute).where(attribute.c.rse_id == rse_id, attribute.c.key == "site"),
    ):
        execute(atlas, statement)
        assert outbox(atlas) == wanted, str(statement)
    execute(atlas, update(rse).values(city="Geneva"), update(attribute).values(updated_at=rse.c.created_at.type.python_type(2026, 1, 1)))
    assert outbox(atlas) == set()


def test_a_scope_counts_where_it_is_shared(atlas: Instance) -> None:
    atlas.bridge.share(["atlas", "later"])
    atlas.add_scope("later")
    atlas.add_scope("other")
    assert outbox(atlas) == {("scope", "later", None, None, None)}


def test_the_kinds_are_told_apart() -> None:
    assert {one.kind for one in triggers.CAPTURED} == {"did", "attachment", "constituent", "replica", "rse", "scope"}
