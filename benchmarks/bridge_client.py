"""The rival of the bridge: a dataset copied with nothing but the stock client, as sites do it today.

Real Rucio servers on PostgreSQL, one of each instance, with one worker. The client lists the dataset with its replicas at the one, and
registers replicas, dataset and content at the other, a thousand files a call.

    python -m benchmarks.bridge_client SERVER_FROM SERVER_TO    # the part of the client, in an environment of its own
"""

from __future__ import annotations

import configparser
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import bridge_floors, instances
from benchmarks.instances import BATCH, DATASET, SCOPE, count, fill, sow
from benchmarks.memory import in_own_process

START_S_MAX = 120


def copied_per_s(directory: Path, n: int) -> float:
    """Files a second."""
    with ExitStack() as stack:
        atlas, cms = (stack.enter_context(instances.on_postgres(name)) for name in ("atlas", "cms"))
        for instance in (atlas, cms):
            bridge_floors.bare(instance)
        sow(atlas)
        fill(atlas, instances.files(n))
        cms.add_scope(SCOPE)
        urls = [stack.enter_context(_server(directory / instance.name, instance)) for instance in (atlas, cms)]
        found = in_own_process("benchmarks.bridge_client", *urls, environment=_client_environment(directory / "cms"))
        assert count(cms) == n
    return n / float(found["s"])


@contextmanager
def _server(home: Path, instance: Any) -> Iterator[str]:
    """The URL of a Rucio server on the database of `instance`."""
    from nsync.testbed import instance as files
    from nsync.testbed import layout, process
    from nsync.testbed.status import answers

    plan = replace(layout.plan(home.parent, 1).instances[0], name=instance.name, home=home)
    files.write_files(plan, home / "charter.json")
    config = configparser.ConfigParser(interpolation=None)
    config.read(plan.server_config)
    config["database"]["default"] = instances.server().url(instance.engine.url.database)
    with plan.server_config.open("w", encoding="utf-8") as file:
        config.write(file)
    command = [sys.executable, "-m", "gunicorn", "-c", str(files.gunicorn_config(plan)), "rucio.web.rest.main:application"]
    child = process.spawn(instance.name, "server", plan.log("server"), command, files.server_environment(plan))
    try:
        until = time.monotonic() + START_S_MAX
        while not answers(plan.server_url):
            assert child.exit_code is None and time.monotonic() < until, child.last_lines()
            time.sleep(0.2)
        yield plan.server_url
    finally:
        process.stop([child])


def _client_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUCIO_")}
    return {
        **kept,
        "RUCIO_HOME": str(home),
        "RUCIO_CONFIG": str(home / "etc" / "client.cfg"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def main(here: str, there: str) -> None:
    from rucio.client import Client

    source, target = (Client(rucio_host=server, auth_host=server) for server in (here, there))
    for client in (source, target):
        client.list_scopes()  # both servers are awake
    began = time.perf_counter()
    listed = [
        {"scope": file["scope"], "name": file["name"], "bytes": file["bytes"], "adler32": file["adler32"], "md5": file["md5"]}
        for file in source.list_replicas([{"scope": SCOPE, "name": DATASET}])
    ]
    target.add_dataset(SCOPE, DATASET)
    for start in range(0, len(listed), BATCH):
        target.add_replicas("DISK", listed[start : start + BATCH])
        target.add_files_to_dataset(SCOPE, DATASET, listed[start : start + BATCH])
    target.close(SCOPE, DATASET)
    print(json.dumps({"files": len(listed), "s": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
