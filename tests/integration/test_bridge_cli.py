"""`nsync bridge` from an empty Rucio database to an empty one again, on both back-ends, also through the hands of a DBA."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
import pytest
from sqlalchemy import make_url

from nsync.rucio_bridge import triggers
from tests.support.federation import KEYS, URLS, charter_document
from tests.support.federations import lone
from tests.support.instances import Instance

pytestmark = pytest.mark.timeout(600)

OBJECTS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name LIKE 'nsync%'",
    "postgresql": "SELECT relname FROM pg_class WHERE starts_with(relname, 'nsync') AND relkind <> 'i' UNION SELECT proname FROM pg_proc "
    "WHERE starts_with(proname, 'nsync') UNION SELECT tgname FROM pg_trigger WHERE starts_with(tgname, 'nsync')",
}
ALTERED = {
    "sqlite": (
        "DROP TRIGGER nsync_capture_dids_insert",
        "CREATE TRIGGER nsync_capture_dids_insert AFTER INSERT ON dids BEGIN SELECT 1; END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION nsync_capture_dids_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    ),
}


class Ran(NamedTuple):
    code: int
    out: str


class Desk:
    """The commands on one database."""

    def __init__(self, instance: Instance, directory: Path) -> None:
        self.instance = instance
        self.name = instance.engine.dialect.name
        self.config = directory / "rucio.cfg"
        self.options = {
            "instance": "atlas",
            "charter": f"{directory}/charter.json",
            "key": f"{directory}/nsync.key",
            "listen": "127.0.0.1:1",
        }
        (directory / "charter.json").write_text(charter_document(URLS))
        KEYS["atlas"].save(directory / "nsync.key")
        self._dids = 0

    def run(self, *arguments: str) -> Ran:
        url = unquote(self.instance.engine.url.render_as_string(hide_password=False))
        options = "\n".join(f"{name} = {value}" for name, value in self.options.items())
        self.config.write_text(f"[database]\ndefault = {url}\n[nsync]\n{options}\n")
        environment = {**os.environ, "RUCIO_CONFIG": str(self.config)}
        command = [sys.executable, "-m", "nsync", "bridge", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return Ran(done.returncode, done.stdout if done.returncode in (0, 4) else done.stderr)

    def objects(self) -> set[str]:
        """Everything of nsync's in the database."""
        return {str(row[0]) for row in self.instance.query(OBJECTS[self.name])}

    def marks(self) -> list[str]:
        return [str(row[0]) for row in self.instance.query("SELECT reason FROM nsync_audit")]

    def as_dba(self, script: str) -> None:
        """Run a script with the database's own tool, where there is one."""
        self.instance.engine.dispose()
        if self.name == "sqlite":
            with closing(sqlite3.connect(self.instance.engine.url.database or "")) as connection:
                connection.executescript(script)
            return
        url = make_url(self.instance.engine.url).set(drivername="postgresql").render_as_string(hide_password=False)
        psql = shutil.which("psql")
        if psql is None:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(script.encode())
            return
        done = subprocess.run([psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", url], input=script, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def rucio_writes(self) -> None:
        self._dids += 1
        self.instance.publish_dataset("atlas", f"w{self._dids}", files=1)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    with lone(request, request.param, tmp_path) as instance:
        instance.add_scope("atlas")
        yield Desk(instance, tmp_path)


def test_a_dba_installs_and_removes_by_what_is_printed(desk: Desk) -> None:
    before = desk.objects()
    removal = desk.run("remove", "--tables", "--dry-run")
    assert removal.code == 0 and desk.objects() == before
    desk.as_dba(removal.out)
    assert desk.objects() == set()
    desk.rucio_writes()
    installation = desk.run("install", "--dry-run")
    assert installation.code == 0 and desk.objects() == set()
    desk.as_dba(installation.out)
    assert (desk.objects() - before, before - desk.objects()) == (set(), set())
    checked = desk.run("check", "--json")
    assert checked.code == 0 and not any(json.loads(checked.out).values())
    assert desk.marks() == ["triggers were installed"]
    assert desk.run("install", "--dry-run").out.strip() == "", "there is nothing left to do"
    desk.rucio_writes()
    assert desk.instance.query("SELECT count(*) FROM nsync_outbox") != [(0,)]


def test_a_second_installation_does_nothing_and_what_was_altered_is_repaired(desk: Desk) -> None:
    assert desk.run("install").code == 0
    before, marks = desk.objects(), desk.marks()
    again = json.loads(desk.run("install", "--json").out)
    assert again["tables_with_new_triggers"] == 0 and desk.objects() == before and desk.marks() == marks
    with desk.instance.engine.begin() as connection:
        for statement in ALTERED[desk.name]:
            connection.exec_driver_sql(statement)
    checked = desk.run("check", "--json")
    assert checked.code == 4 and "nsync_capture_dids_insert" in json.loads(checked.out)["triggers"]
    assert "nsync_capture_dids_insert" in desk.run("install", "--dry-run").out
    assert json.loads(desk.run("install", "--json").out)["tables_with_new_triggers"] == 1
    assert desk.run("check").code == 0 and desk.objects() == before
    assert desk.marks() == [*marks, "triggers were installed"], "what it missed is looked for"


def test_rucio_goes_on_without_triggers_and_without_tables(desk: Desk) -> None:
    removed = json.loads(desk.run("remove", "--yes", "--json").out)
    assert removed["triggers"] > 30 and {f"nsync_{table}" for table in ("outbox", "audit", "entry")} < desk.objects()
    desk.rucio_writes()
    assert desk.run("check").code == 4 and desk.run("install").code == 0
    assert desk.run("remove", "--tables", "--yes").code == 0
    assert desk.objects() == set()
    desk.rucio_writes()


def test_where_changes_are_polled_there_are_no_triggers(desk: Desk) -> None:
    desk.options["capture"] = "poll"
    found = json.loads(desk.run("check", "--json").out)
    assert found["triggers"].endswith("are there, though [nsync] capture = poll; run 'nsync bridge install' to drop them")
    printed = desk.run("install", "--dry-run")
    assert printed.out.count("DROP ") >= len(triggers.CAPTURED)
    assert desk.run("install").code == 0 and desk.run("check").code == 0
    assert not {name for name in desk.objects() if name.startswith(triggers.PREFIX)}
    before = desk.instance.query("SELECT count(*) FROM nsync_outbox")
    desk.rucio_writes()
    assert desk.instance.query("SELECT count(*) FROM nsync_outbox") == before
    desk.options["capture"] = "triggers"
    assert desk.run("check").code == 4
