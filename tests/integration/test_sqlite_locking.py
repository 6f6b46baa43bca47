"""A real Rucio server on SQLite loses no call beside another writer of its database, which is what nsync's node is.

Two stock clients work while a third process writes in transactions of 100 ms with equal pauses. With `sqlite+nsync`
every call succeeds. The planted fault is Rucio's usual `sqlite:///`: there, calls that fill a temporary table, read and
then write fail with "database is locked", at once and whatever the busy timeout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsync.testbed import layout
from nsync.testbed.instance import RSE, client_environment, gunicorn_config, server_environment, write_files
from nsync.testbed.layout import Instance
from nsync.testbed.process import Child, spawn, stop
from nsync.testbed.status import answers

pytestmark = pytest.mark.servers

START_S = 60

CLIENT = """
import json, sys, time
from rucio.client import Client
scope, name, seconds, until_failure = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "until-failure"
client, calls, failures, end = Client(), 0, [], time.monotonic() + seconds
while time.monotonic() < end and not (until_failure and failures):
    dataset = f"{name}.{calls}"
    files = [{"scope": scope, "name": f"{dataset}.{n}", "bytes": 1, "adler32": "00000001"} for n in range(3)]
    for call in (
        lambda: client.add_dataset(scope, dataset),
        lambda: client.add_replicas("DISK", files),
        lambda: client.attach_dids(scope, dataset, files),
        lambda: client.close(scope, dataset),
    ):
        calls += 1
        try:
            call()
        except Exception as error:
            failures.append(str(error))
print(json.dumps({"calls": calls, "failures": failures}))
"""

WRITER = """
import sys, time
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE beside (n INTEGER)"))
while True:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO beside VALUES (1)"))
        time.sleep(0.1)
    time.sleep(0.1)
"""


@contextmanager
def serving(instance: Instance, database_url: str) -> Iterator[None]:
    """A Rucio server of `instance` that opens its database by `database_url`, and the other writer beside it."""
    write_files(instance, instance.home / "charter.json")
    children: list[Child] = []

    def run(role: str, *arguments: str) -> Child:
        child = spawn(instance.name, role, instance.log(role), [sys.executable, *arguments], server_environment(instance))
        children.append(child)
        return child

    try:
        assert run("database", "-m", "nsync.testbed.initdb", RSE, f"{instance.storage}/").popen.wait(timeout=START_S) == 0
        config = instance.server_config.read_text()
        instance.server_config.write_text(config.replace(instance.database_url, database_url))
        run("server", "-m", "gunicorn", "-c", str(gunicorn_config(instance)), "rucio.web.rest.main:application")
        end = time.monotonic() + START_S
        while not answers(instance.server_url):
            assert time.monotonic() < end, children[-1].last_lines()
            time.sleep(0.1)
        add_scope(instance)
        run("writer", "-c", WRITER, instance.database_url)
        yield
        assert children[-1].exit_code is None, children[-1].last_lines()
    finally:
        stop(children)


def add_scope(instance: Instance) -> None:
    """The scope that bears the instance's name, made by the stock client."""
    program = f"from rucio.client import Client; Client().add_scope('root', {instance.name!r})"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=START_S, env=client_environment(instance))


def hammer(instances: Sequence[Instance], seconds: float, until: str) -> tuple[int, list[str]]:
    """Two stock clients at once at each instance: how many calls they made, and the texts of those that failed."""
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, instance.name, name, str(seconds), until],
            stdout=subprocess.PIPE,
            text=True,
            env=client_environment(instance),
        )
        for instance in instances
        for name in ("one", "two")
    ]
    results = [json.loads(client.communicate(timeout=seconds + START_S)[0]) for client in clients]
    return sum(result["calls"] for result in results), [text for result in results for text in result["failures"]]


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return layout.plan(tmp_path, 1).instances[0]


def test_no_call_is_lost_beside_another_writer(instance: Instance) -> None:
    with serving(instance, instance.database_url):
        calls, failures = hammer([instance], seconds=8, until="end")
    assert failures == []
    assert calls > 20


def test_planted_fault_the_usual_url_loses_calls(instance: Instance) -> None:
    usual = instance.database_url.replace("sqlite+nsync", "sqlite") + "?timeout=30"
    with serving(instance, usual):
        _, failures = hammer([instance], seconds=60, until="until-failure")
    assert any("database is locked" in text for text in failures)
