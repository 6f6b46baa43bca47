"""The testbed with real processes: what `up` promises, what `down` leaves behind, and that a partition is one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Callable

import psutil
import pytest

from nsync.auth.keys import verify
from nsync.authority import documents
from nsync.testbed import control, layout
from nsync.testbed.instance import client_environment
from nsync.testbed.layout import Instance, Layout
from nsync.testbed.process import ProcessId
from nsync.testbed.proxy import POLL_S, Network, write_cut

pytestmark = pytest.mark.servers

SEEN_S = 3 * POLL_S
"""After which the network has followed the partition file."""


def nsync(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nsync", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def rucio(instance: Instance, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("rucio")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=client_environment(instance))
    return done.stdout


def up(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return nsync("testbed", "up", "--dir", directory, "--detach", "--no-nodes", *arguments)


def family(bed: Layout) -> list[psutil.Process]:
    """The supervisor and all that descends from it."""
    assert bed.run is not None
    supervisor = psutil.Process(bed.run.supervisor.pid)
    return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "bed"
    if layout.exists(tmp_path / "bed"):
        control.down(layout.load(tmp_path / "bed"))


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    directory = tmp_path_factory.mktemp("bed")
    done = up(directory, "--instances", 2, "--share", "cms=cms.data,cms.more")
    assert done.returncode == 0, done.stderr
    yield layout.load(directory)
    control.down(layout.load(directory))


def test_the_stock_client_is_root_at_every_instance(bed: Layout) -> None:
    for instance in bed.instances:
        assert "account    : root" in rucio(instance, "whoami")
        assert rucio(instance, "rse", "list").split() == ["DISK"]


def test_status_for_programs(bed: Layout) -> None:
    done = nsync("testbed", "status", "--dir", bed.directory, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(i["name"], i["server"]["state"], i["node"]["state"], i["cut"]) for i in document["instances"]] == [
        ("atlas", "up", "stopped", False),
        ("cms", "up", "stopped", False),
    ]


def test_the_charter_delegates_scopes_and_dois(bed: Layout) -> None:
    signed = documents.load(bed.charter.read_text(), verify)
    atlas, cms = signed.instances
    assert (signed.home("atlas.open"), signed.home("cms"), signed.doi_home("10.5072/CMS.1")) == (atlas, cms, cms)
    assert [i.url for i in signed.instances] == [i.charter_url for i in bed.instances]


@pytest.mark.parametrize(("options", "command"), [((), "rucio whoami"), (("--server",), "nsync bridge check --json")])
def test_env_is_all_that_a_shell_needs(bed: Layout, options: tuple[str, ...], command: str) -> None:
    exports = nsync("testbed", "env", "--dir", bed.directory, *options, "atlas").stdout
    shell = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", f"{exports}\n{command}"], capture_output=True, text=True, timeout=60, env=shell)
    if options:
        assert json.loads(done.stdout)["database"] is None and done.returncode == 4, done.stderr  # there are no nodes here
    else:
        assert "account    : root" in done.stdout, done.stderr


def test_the_next_step_can_be_typed_as_it_is_printed(directory: Path) -> None:
    told = up(directory, "--instances", 1).stdout.splitlines()[-1]
    step = told.split(": ", 1)[1]
    done = subprocess.run(["sh", "-c", step], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"})
    assert "account    : root" in done.stdout, done.stderr


def test_shared_scopes_reach_the_configuration(bed: Layout) -> None:
    assert "shared_scopes = cms.data, cms.more" in bed.instance("cms").server_config.read_text()


def test_a_second_up_says_that_it_runs(bed: Layout) -> None:
    done = up(bed.directory)
    assert (done.returncode, "is running already" in done.stderr) == (1, True)


@pytest.mark.parametrize(("arguments", "code"), [(("env", "cern"), 1), (("up", "--instances", "10"), 2), (("up", "--share", "cms"), 2)])
def test_exit_codes(bed: Layout, arguments: tuple[str, ...], code: int) -> None:
    assert nsync("testbed", *arguments, "--dir", bed.directory).returncode == code


def test_a_dead_server_is_shown(directory: Path) -> None:
    up(directory, "--instances", 1)
    run = layout.load(directory).run
    assert run is not None
    os.kill(run.children["atlas"]["server"].pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(run.children["atlas"]["server"].pid)], timeout=10)
    done = nsync("testbed", "status", "--dir", directory)
    assert (done.returncode, "died" in done.stdout) == (1, True)
    assert "atlas: server died with exit code -9" in (directory / "supervisor.log").read_text()


def test_data_outlive_a_stop_and_processes_do_not(directory: Path) -> None:
    up(directory, "--instances", 1)
    first = layout.load(directory)
    rucio(first.instances[0], "scope", "add", "atlas.kept", "--account", "root")
    processes = family(first)
    assert nsync("testbed", "down", "--dir", directory).returncode == 0
    assert not any(process.is_running() for process in processes)
    assert up(directory).returncode == 0
    assert "atlas.kept" in rucio(layout.load(directory).instances[0], "scope", "list")


def test_a_killed_supervisor_leaves_nothing(directory: Path) -> None:
    up(directory, "--instances", 1)
    processes = family(layout.load(directory))
    assert len(processes) >= 3  # supervisor, gunicorn, its worker
    processes[0].kill()
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == []


def test_a_failed_start_names_instance_step_and_log_and_leaves_nothing(directory: Path) -> None:
    up(directory, "--instances", 1)
    control.down(layout.load(directory))
    atlas = layout.load(directory).instances[0]
    with socket.create_server(("127.0.0.1", atlas.server_port)):
        done = up(directory)
    assert done.returncode == 1
    assert "atlas: server ended with exit code 1" in done.stderr
    assert str(atlas.log("server")) in done.stderr
    assert "Can't connect" in done.stderr  # gunicorn's own words, from the log
    assert layout.load(directory).run is None


def test_help_imports_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys; sys.argv = ['nsync', '--help']\n"
        "from nsync.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'rucio', 'sqlalchemy', 'aiohttp', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_process_number_used_again_is_another_process() -> None:
    own = ProcessId.of(os.getpid())
    assert own.alive()
    assert not ProcessId(own.pid, own.created - 60).alive()


class Exchange:
    """Two instances whose nodes are echo servers, and the network between them."""

    def __init__(self, tmp_path: Path) -> None:
        plan = layout.plan(tmp_path, 2)
        self.atlas, self.cms = plan.instances
        self.partition = plan.partition
        self.network = Network(plan.instances, plan.partition)

    async def dial(self, source: Instance, target: Instance) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", target.proxy_port, local_addr=(source.source_address, 0))

    async def echoes(self, source: Instance, target: Instance, data: bytes = b"hello") -> bool:
        """Whether `data` come back whole; a reset is a no."""
        reader, writer = await self.dial(source, target)
        try:
            writer.write(data)
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), timeout=10) == data
        except OSError:
            return False
        finally:
            writer.transport.abort()


def exchange(tmp_path: Path, story: Callable[[Exchange], Awaitable[None]]) -> None:
    """Let `story` happen between two echoing nodes; at its end no connection may be left."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def play() -> None:
        both = Exchange(tmp_path)
        nodes = [await asyncio.start_server(echo, "127.0.0.1", i.node_port) for i in (both.atlas, both.cms)]
        await both.network.start()
        watch = asyncio.create_task(both.network.watch())
        try:
            await story(both)
            await asyncio.sleep(SEEN_S)
            assert both.network.open_connections == 0
        finally:
            watch.cancel()
            await both.network.close()
            for node in nodes:
                node.close()

    asyncio.run(play())


def test_the_network_carries_bytes_both_ways_and_half_closes(tmp_path: Path) -> None:
    async def story(both: Exchange) -> None:
        assert await both.echoes(both.atlas, both.cms, os.urandom(3 << 20))

    exchange(tmp_path, story)


def test_a_cut_instance_reaches_nobody_and_nobody_reaches_it_until_healed(tmp_path: Path) -> None:
    async def story(both: Exchange) -> None:
        write_cut(both.partition, ["cms"])
        await asyncio.sleep(SEEN_S)
        assert not await both.echoes(both.atlas, both.cms)
        assert not await both.echoes(both.cms, both.atlas)
        write_cut(both.partition, [])
        await asyncio.sleep(SEEN_S)
        assert await both.echoes(both.atlas, both.cms)
        assert await both.echoes(both.cms, both.atlas)

    exchange(tmp_path, story)


def test_a_cut_resets_open_connections(tmp_path: Path) -> None:
    async def story(both: Exchange) -> None:
        reader, writer = await both.dial(both.atlas, both.cms)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        write_cut(both.partition, ["atlas"])
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), timeout=SEEN_S)
        writer.close()

    exchange(tmp_path, story)


def test_a_node_that_is_down_resets_the_caller(tmp_path: Path) -> None:
    async def play() -> None:
        both = Exchange(tmp_path)
        await both.network.start()
        assert not await both.echoes(both.atlas, both.cms)
        await both.network.close()

    asyncio.run(play())


def test_the_demo_ends_well_and_leaves_a_stopped_testbed(directory: Path) -> None:
    done = nsync("demo", "--dir", directory, "--instances", 2, "--files", 2, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(r["instance"], r["datasets"], r["files"], r["replicas"], r["conflicts"]) for r in report["rows"]] == [
        ("atlas", 4, 8, 8, 0),
        ("cms", 4, 8, 8, 0),
    ]
    assert report["downloaded_files"] == 4
    assert not layout.load(directory).running
