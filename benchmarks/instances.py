"""Real Rucio databases to measure the bridge in: on SQLite files, and on a private PostgreSQL that is durable.

The instances are those of the tests (tests.support.instances, rucio_postgres): Rucio 41.5.1's own schema, with nsync's tables and
triggers. atlas publishes, cms receives. A dataset has three rows a file, as Rucio's core writes them: one file is written by it, the
others are copies of its rows with names, sizes and checksums of their own, so that making a dataset takes seconds.
"""

from __future__ import annotations

import atexit
import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import names
from benchmarks.rows import Spent

FILES_MAX, FILES_MIN = 100_000, 1000
SCOPE, SEED, DATASET = "atlas", "seed", "dataset"
SEED_FILE = f"{SEED}.file"
TABLES = ("dids", "contents", "replicas")
BATCH = 1000
"""Files in a call of Rucio's."""


def files_of(entries: int) -> int:
    """How many files a dataset has in a run of so many entries: 10 000 in a quick one, 100 000 in a whole one."""
    return max(FILES_MIN, min(entries // 10, FILES_MAX))


class File(NamedTuple):
    """What of a file differs from others of its dataset."""

    name: str
    bytes: int
    adler32: str
    md5: str


def files(n: int, seed: int = 1) -> list[File]:
    made = itertools.islice(names.atlas(random.Random(seed), n), n)
    return [File(file.name, file.size, file.adler32.hex(), file.md5.hex()) for file in made]


# ---- databases


@cache
def home() -> Path:
    """Rucio's configuration and an SQLite database made by it, for this process: Rucio reads the one at its import."""
    from nsync.testbed import instance, layout

    directory = Path(tempfile.mkdtemp(prefix="nsync-bench-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    plan = layout.plan(directory, 1).instances[0]
    instance.write_files(plan, directory / "charter.json")
    os.environ.update({"RUCIO_HOME": str(plan.home), "RUCIO_CONFIG": str(plan.server_config)})
    return plan.home


@cache
def sqlite_template() -> Path:
    path = home() / "rucio.db"
    subprocess.run([sys.executable, "-m", "nsync.testbed.initdb", "DISK", f"{home()}/rse/"], check=True)
    from tests.support.instances import install

    install(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@cache
def server() -> Any:
    """A server for the whole run, gone with this process; every commit is flushed. Raises NoServer."""
    from tests.support.postgres import serve

    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serve(durable=True, settings={"max_wal_size": "4GB"}))


@cache
def postgres_template() -> str:
    """The URL of a database to copy."""
    home()
    from tests.support.rucio_postgres import build

    server().execute("CREATE DATABASE rucio")
    directory = Path(tempfile.mkdtemp(dir=home()))
    build(server().url("rucio"), directory)
    return str(server().url("rucio"))


@contextmanager
def on_postgres(name: str, shared: Sequence[str] = (), like: str = "rucio") -> Iterator[Any]:
    """An instance on a new database, a copy of that called `like`."""
    postgres_template()
    from tests.support.rucio_postgres import PostgresInstance

    with server().database(template=like) as url:
        instance = PostgresInstance(url, name, shared)
        yield instance
        instance.close()


@contextmanager
def on_sqlite(directory: Path, name: str, shared: Sequence[str] = (), like: Path | None = None) -> Iterator[Any]:
    """An instance on a new file, a copy of `like`."""
    template = like or sqlite_template()
    from tests.support.instances import Instance

    with tempfile.TemporaryDirectory(dir=directory) as place:
        instance = Instance(template, Path(place), name, shared)
        yield instance
        instance.close()


def keep(instance: Any) -> Any:
    """What `like` copies from then on: nobody is connected to it any more."""
    if instance.engine.dialect.name == "sqlite":
        instance.checkpoint()
        instance.close()
        return instance.path
    instance.close()
    return instance.engine.url.database


def timed(instance: Any, work: Callable[[], object]) -> Spent:
    """The seconds of the clock, and the CPU seconds of this process and of those that serve it."""
    before, began = _serving_cpu_s(instance), time.perf_counter()
    cpu = time.process_time()
    work()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Spent(cpu + sum(s - before.get(pid, 0.0) for pid, s in _serving_cpu_s(instance).items()), wall)


def _serving_cpu_s(instance: Any) -> dict[int, float]:
    """Of each backend of the instance's database; they stay, since connections are kept."""
    found = {}
    if instance.engine.dialect.name == "postgresql":
        for (pid,) in instance.query("SELECT pid FROM pg_stat_activity WHERE datname = current_database()"):
            with suppress(FileNotFoundError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def settle_disk(instance: Any) -> None:
    """What was written before is on the disk, so that what is measured next does not wait for it."""
    with instance.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CHECKPOINT" if instance.engine.dialect.name == "postgresql" else "PRAGMA wal_checkpoint(TRUNCATE)")


# ---- datasets


def sow(instance: Any) -> None:
    """A scope, and a dataset of one file: what copies are made of."""
    from rucio.common.types import InternalScope
    from rucio.core.replica import add_replicas
    from rucio.core.rse import get_rse_id
    from tests.support.instances import ROOT

    instance.add_scope(SCOPE)
    with instance.session() as session:
        file = {"scope": InternalScope(SCOPE), "name": SEED_FILE, "bytes": 1, "adler32": "0" * 8, "md5": "0" * 32}
        add_replicas(get_rse_id("DISK", session=session), [file], ROOT, session=session)
    instance.add_did(SCOPE, SEED)
    instance.attach(SCOPE, SEED, [(SCOPE, SEED_FILE)])
    instance.set_open(SCOPE, SEED, False)


def fill(instance: Any, made: Sequence[File], dataset: str = DATASET) -> None:
    """A closed dataset of the files `made`, in one transaction of Rucio's database; triggers hear of it."""
    instance.add_did(SCOPE, dataset)
    own = {name: f"f.{name}" for name in File._fields}
    edge = {"child_name": "f.name", "name": f"'{dataset}'", **{name: own[name] for name in File._fields[1:]}}
    with instance.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE fresh (name varchar(250), bytes bigint, adler32 varchar(8), md5 varchar(32))")
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(f"INSERT INTO fresh VALUES ({', '.join([mark] * 4)})", [tuple(file) for file in made])
        for table, column, changed in (("dids", "name", own), ("contents", "child_name", edge), ("replicas", "name", own)):
            columns = list(connection.exec_driver_sql(f"SELECT * FROM {table} LIMIT 0").keys())
            values = ", ".join(changed.get(name, f"s.{name}") for name in columns)
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} s, fresh f WHERE s.{column} = '{SEED_FILE}'"
            )
        connection.exec_driver_sql("DROP TABLE fresh")
    instance.set_open(SCOPE, dataset, False)


def count(instance: Any, dataset: str = DATASET) -> int:
    """The files of a dataset that are there with all their rows."""
    sql = (
        "SELECT count(*) FROM contents c JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name "
        "JOIN replicas r ON r.scope = d.scope AND r.name = d.name WHERE c.name = :name AND d.md5 = r.md5 AND c.adler32 = d.adler32"
    )
    return int(instance.query(sql, name=dataset)[0][0])
