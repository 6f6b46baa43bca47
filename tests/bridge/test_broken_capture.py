"""Triggers never stand in Rucio's way, and nobody makes them miss anything, on PostgreSQL.

A broken nsync fails none of Rucio's writes, says so, and leaves a mark by which the next audit publishes what was missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from rucio.common.types import InternalScope
from rucio.core.did import set_new_dids
from rucio.db.sqla import models
from rucio.db.sqla.constants import ReplicaState
from sqlalchemy import Table, delete, insert, make_url, text, update

from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Did, Replica, Rse
from nsync.rucio_bridge import triggers
from nsync.rucio_bridge.audit import PAUSE_MS
from tests.bridge.test_postgres import atlas, outbox
from tests.support.postgres import Server
from tests.support.rucio_postgres import PostgresInstance

__all__ = ["atlas"]  # a fixture

pytestmark = pytest.mark.postgres

OWNER, WRITER = "nsync_test_owner", "nsync_test_writer"


@pytest.fixture(scope="module")
def roles(postgres_server: Server) -> Iterator[None]:
    """One that owns the functions of the triggers, and one that writes as Rucio's servers do; neither is a superuser."""
    for role in (OWNER, WRITER):
        postgres_server.execute(f"CREATE ROLE {role} LOGIN")
    yield
    for role in (OWNER, WRITER):  # what they were given went with the databases
        postgres_server.execute(f"DROP ROLE {role}")


def execute(instance: PostgresInstance, *statements: str) -> None:
    with instance.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def told(instance: PostgresInstance, *statements: str, role: str = "postgres") -> list[str]:
    """Run statements as another client of the database, in one transaction; what the server told it."""
    found: list[str] = []
    url = make_url(instance.engine.url).set(drivername="postgresql", username=role)
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        connection.add_notice_handler(lambda told: found.append(f"{told.severity}: {told.message_primary}"))
        for statement in statements:
            connection.execute(statement.encode())
    return found


class Breakage(NamedTuple):
    """What breaks nsync, what repairs it, and whether a mark can be left meanwhile."""

    breaks: tuple[str, ...]
    repairs: tuple[str, ...]


GIVEN_AWAY = tuple(
    f"ALTER FUNCTION {triggers.PREFIX}{one.table}_{event}() OWNER TO {OWNER}"
    for one in triggers.CAPTURED
    for event in (*map(str.lower, one.events), "truncate")
)
BREAKAGES = {
    "the outbox is gone": Breakage(("ALTER TABLE nsync_outbox RENAME TO gone",), ("ALTER TABLE gone RENAME TO nsync_outbox",)),
    "a column is missing": Breakage(
        ("ALTER TABLE nsync_outbox RENAME COLUMN a TO gone",), ("ALTER TABLE nsync_outbox RENAME COLUMN gone TO a",)
    ),
    "the catalogue is gone": Breakage(("ALTER TABLE nsync_entry RENAME TO gone",), ("ALTER TABLE gone RENAME TO nsync_entry",)),
    "its rights are revoked": Breakage(
        (
            *GIVEN_AWAY,
            f"GRANT USAGE ON SCHEMA public TO {OWNER}",
            f"GRANT INSERT ON nsync_audit TO {OWNER}",
            f"GRANT USAGE ON SEQUENCE nsync_audit_id_seq TO {OWNER}",
        ),
        (f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {OWNER}", f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {OWNER}"),
    ),
}


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_nsync_fails_no_write_and_misses_none_for_ever(atlas: PostgresInstance, name: str) -> None:
    atlas.add_files("atlas", ["f1"])
    atlas.add_did("atlas", "d1")
    atlas.work()
    execute(atlas, *BREAKAGES[name].breaks)
    atlas.attach("atlas", "d1", [("atlas", "f1")])
    atlas.publish_dataset("atlas", "d2", doi="10.5072/D2")
    said = told(atlas, "UPDATE dids SET project = 'x' WHERE name = 'd1'")
    assert len(said) == 1 and said[0].startswith("WARNING: nsync: a change of public.dids was not captured"), said
    assert dict(atlas.query("SELECT name, project FROM dids WHERE name = 'd1'")) == {"d1": "x"}
    marks = {reason.split(":")[0] for (reason,) in atlas.query("SELECT reason FROM nsync_audit")}
    assert marks >= {f"{triggers.PREFIX}{table}_insert" for table in ("dids", "contents", "replicas")}
    execute(atlas, *BREAKAGES[name].repairs)
    atlas.work()
    if name != "the catalogue is gone":  # then open data is heard of, with what is below it
        assert Did("atlas", "d2") not in atlas.catalogue(), "a trigger that always fails must not keep the node at it"
    atlas.now_ms += PAUSE_MS
    atlas.work()
    found = atlas.catalogue()
    assert {Did("atlas", "d2"), Attachment(Did("atlas", "d1"), Did("atlas", "f1"))} < found.keys()
    assert dict(found[Did("atlas", "d1")].meta)["project"] == "x"  # type: ignore[union-attr]
    assert found[Did("atlas", "d2")].doi == "10.5072/D2"  # type: ignore[union-attr]
    assert atlas.query("SELECT reason FROM nsync_audit") == [] and outbox(atlas) == []


def test_without_any_table_of_nsync_rucio_goes_on(atlas: PostgresInstance) -> None:
    execute(atlas, "ALTER TABLE nsync_outbox RENAME TO gone", "ALTER TABLE nsync_audit RENAME TO gone_too")
    atlas.publish_dataset("atlas", "d1", doi="10.5072/D1")
    said = told(atlas, "UPDATE dids SET project = 'x' WHERE name = 'd1'")
    assert [line[:40] for line in said] == ["WARNING: nsync: a change of public.dids ", "WARNING: nsync: there is no mark for a f"]
    assert len(atlas.query("SELECT name FROM dids")) == 4


@pytest.mark.usefixtures("roles")
def test_nobody_diverts_what_is_captured(atlas: PostgresInstance) -> None:
    """A role without any right on nsync's tables, that searches another schema first and has a temporary table of that name."""
    execute(
        atlas,
        f"GRANT ALL ON dids TO {WRITER}",
        f"GRANT USAGE ON SCHEMA public TO {WRITER}",
        f"CREATE SCHEMA evil AUTHORIZATION {WRITER}",
    )
    columns = "(id bigint, kind text, a text, b text, c text, d text)"
    shadows = (
        "SET search_path = evil, pg_catalog, public",
        f"CREATE TABLE evil.nsync_outbox {columns}",
        "CREATE TABLE evil.nsync_shared_scope (scope text)",
        "CREATE TABLE evil.nsync_audit (reason text)",
        f"CREATE TEMPORARY TABLE nsync_outbox {columns}",
        "CREATE TEMPORARY TABLE nsync_shared_scope (scope text)",
        "CREATE TEMPORARY TABLE nsync_entry (kind int, scope text, name text)",
        "CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'bridge' $$",
        "CREATE FUNCTION evil.false_equal(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$",
        "CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.false_equal)",
    )
    columns = "scope, name, account, did_type, is_open, availability, created_at, updated_at"
    row = f"INSERT INTO public.dids ({columns}) VALUES ('atlas', 'd1', 'root', 'D', true, 'A', now(), now())"
    seen = "INSERT INTO evil.nsync_outbox SELECT * FROM pg_temp.nsync_outbox"
    assert told(atlas, *shadows, row, seen, role=WRITER) == []
    assert atlas.query("SELECT * FROM evil.nsync_outbox") == []
    assert outbox(atlas) == [("did", "atlas", "d1", None, None)]


def test_what_is_changed_early_and_committed_late_is_not_lost(atlas: PostgresInstance) -> None:
    """Its rows in the outbox have smaller numbers, and its transaction an older id, than what is published before."""
    atlas.add_did("atlas", "d1")
    atlas.work()
    with atlas.sessions.begin() as early:
        early.execute(text("UPDATE dids SET is_open = false WHERE name = 'd1'"))
        for name in ("d2", "d3"):
            atlas.add_did("atlas", name)
            assert atlas.work() == 1
    assert outbox(atlas) == [("did", "atlas", "d1", None, None)]
    assert atlas.work() == 1 and atlas.catalogue()[Did("atlas", "d1")].closed  # type: ignore[union-attr]


def test_what_goes_by_cascade_is_captured(atlas: PostgresInstance) -> None:
    """The entry of open data goes with its DID's row, and its DOI with it: each tells of it, though the scope is not shared."""
    atlas.add_scope("private")
    atlas.add_did("private", "d1")
    atlas.add_open_data("private", "d1")
    scope = InternalScope("private")
    with atlas.session() as session:
        session.execute(insert(models.OpenDataDOI.__table__).values(scope=scope, name="d1", doi="10.5072/D1"))
    atlas.work()
    execute(atlas, "DELETE FROM dids WHERE scope = 'private'")
    assert atlas.query("SELECT kind, a, b FROM nsync_outbox") == [("did", "private", "d1")] * 2


def test_what_daemons_note_makes_no_op(atlas: PostgresInstance) -> None:
    """A rule locks a file, the judge notes that it looked, the transmogrifier that a DID is new no more."""
    atlas.publish_dataset("atlas", "d1")
    atlas.work()
    atlas.add_rule("atlas", "d1")
    with atlas.session() as session:
        session.execute(text("UPDATE contents SET rule_evaluation = true"))
        session.execute(text("UPDATE replicas SET accessed_at = now(), updated_at = now()"))
        session.execute(text("UPDATE dids SET accessed_at = now(), access_cnt = 7, updated_at = now()"))
        set_new_dids([{"scope": InternalScope("atlas"), "name": "d1"}], None, session=session)
    assert atlas.query("SELECT DISTINCT lock_cnt FROM replicas") == [(1,)]
    assert outbox(atlas) == [] and atlas.work() == 0


PASSING = [state for state in ReplicaState if state.name not in fields.STATES]


@pytest.mark.parametrize("state", [*PASSING, ReplicaState.BAD, ReplicaState.TEMPORARY_UNAVAILABLE], ids=lambda state: str(state.name))
def test_a_replica_that_was_never_available_is_not_shared(atlas: PostgresInstance, state: ReplicaState) -> None:
    table: Table = models.RSEFileAssociation.__table__  # type: ignore[assignment]
    replica = Replica(Did("atlas", "f1"), Rse("atlas", "DISK"))
    with atlas.session() as session:
        session.execute(delete(table))
    atlas.add_files("atlas", ["f1"])
    with atlas.session() as session:
        session.execute(update(table).values(state=state))
    atlas.work()
    assert Did("atlas", "f1") in atlas.catalogue() and replica not in atlas.catalogue()
    with atlas.session() as session:
        session.execute(update(table).values(state=ReplicaState.AVAILABLE))
    atlas.work()
    assert replica in atlas.catalogue() and not any(isinstance(key, Attribute) for key in atlas.catalogue())
