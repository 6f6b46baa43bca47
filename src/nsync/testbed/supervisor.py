"""Start all processes of a testbed, watch them, and stop them: nothing is left running, however it ends.

The start has four steps, each for all instances at once: files and charter, databases (only the first time), triggers,
then servers and nodes until they answer. A step that fails stops everything and says which instance, which step, and
what its log ends with. A process that dies later is reported and left dead: a testbed is there to see such things.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from nsync.errors import NsyncError
from nsync.testbed import layout as layouts
from nsync.testbed.charter import make_charter
from nsync.testbed.instance import RSE, gunicorn_config, server_environment, write_files
from nsync.testbed.layout import Instance, Layout, Run
from nsync.testbed.process import Child, ProcessId, spawn, stop
from nsync.testbed.proxy import Network
from nsync.testbed.status import answers

STEP_TIMEOUT_S = 120
"""For one step of the start: databases of nine instances take 20 s on two cores."""

POLL_S = 0.1

DEFAULT_COUNT = 3

SERVICES = ("server", "node")
"""The children that go on; the others are steps of the start."""

Say = Callable[[str], None]


class StartFailed(NsyncError):
    """The testbed does not run; the text says why and where to look."""


class AlreadyRunning(StartFailed):
    """Somebody runs this testbed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"the testbed in {directory} is running already; see 'nsync testbed status --dir {directory}'")


def run(directory: Path, count: Optional[int], shares: Mapping[str, tuple[str, ...]], with_nodes: bool, say: Say) -> None:
    """Start the testbed in `directory`, made first if there is none, and keep it until SIGINT or SIGTERM.

    `count` is the number of instances of a new testbed (3 when None). Raises StartFailed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory):
        layout = _open(directory, count).sharing(shares)
        asyncio.run(_until_signalled(Supervisor(layout, with_nodes, say)))


class Supervisor:
    """One life of a testbed."""

    def __init__(self, layout: Layout, with_nodes: bool, say: Say) -> None:
        self._layout = layout
        self._with_nodes = with_nodes
        self._say = say
        self._children: list[Child] = []
        self._network = Network(layout.instances, layout.partition)

    async def live(self) -> None:
        """Start, then watch until cancelled; stop everything in any case."""
        try:
            await self._start()
            await asyncio.gather(self._watch(), self._network.watch())
        finally:
            self._say("stopping")
            await self._network.close()
            stop(self._children)
            layouts.save(replace(self._layout, run=None))

    async def _start(self) -> None:
        self._record()  # before the charter, which takes its ports from the layout
        self._write_files()
        await self._make_databases()
        if self._with_nodes:
            await self._step("bridge", self._layout.instances, lambda _: ["-m", "nsync", "bridge", "install"])
        await self._open_network()
        await self._start_services()
        self._say(f"ready: {len(self._layout.instances)} instances in {self._layout.directory}")
        self._record(ready=True)

    def _write_files(self) -> None:
        for instance in self._layout.instances:
            write_files(instance, self._layout.charter)
        make_charter(self._layout)

    async def _make_databases(self) -> None:
        missing = [i for i in self._layout.instances if not i.initialised]
        for instance in missing:
            for remnant in instance.home.glob("rucio.db*"):
                remnant.unlink()
        await self._step("database", missing, lambda i: ["-m", "nsync.testbed.initdb", RSE, f"{i.storage}/"])
        self._layout = replace(self._layout, instances=tuple(replace(i, initialised=True) for i in self._layout.instances))
        self._record()

    async def _open_network(self) -> None:
        try:
            await self._network.start()
        except OSError as error:
            raise StartFailed(f"network: {error.strerror}; end what holds that port, or start anew with another --dir") from error

    async def _start_services(self) -> None:
        """Start servers and nodes together, and wait until each answers."""
        waits = []
        for i in self._layout.instances:
            server = self._spawn("server", i, ["-m", "gunicorn", "-c", str(gunicorn_config(i)), "rucio.web.rest.main:application"])
            waits.append(self._answering(server, i.server_url))
            if self._with_nodes:
                waits.append(self._answering(self._spawn("node", i, ["-m", "nsync", "serve"]), i.node_url))
        self._record()
        await asyncio.gather(*waits)

    async def _step(self, role: str, instances: Sequence[Instance], arguments: Callable[[Instance], list[str]]) -> None:
        """Run one program per instance, and wait until all have ended well."""
        await asyncio.gather(*(self._ended(self._spawn(role, i, arguments(i))) for i in instances))

    def _spawn(self, role: str, instance: Instance, arguments: list[str]) -> Child:
        child = spawn(instance.name, role, instance.log(role), [sys.executable, *arguments], server_environment(instance))
        self._children.append(child)
        return child

    async def _ended(self, child: Child) -> None:
        started = time.monotonic()
        while child.exit_code is None:
            await self._wait(child, started)
        if child.exit_code != 0:
            raise _failed(child, f"ended with exit code {child.exit_code}")
        self._say(f"{child.instance}: {child.role} done in {time.monotonic() - started:.1f} s")

    async def _answering(self, child: Child, url: str) -> None:
        started = time.monotonic()
        while not await asyncio.to_thread(answers, url):
            if child.exit_code is not None:
                raise _failed(child, f"ended with exit code {child.exit_code}")
            await self._wait(child, started)
        self._say(f"{child.instance}: {child.role} answers at {url} after {time.monotonic() - started:.1f} s")

    async def _wait(self, child: Child, started: float) -> None:
        if time.monotonic() - started > STEP_TIMEOUT_S:
            raise _failed(child, f"is not done after {STEP_TIMEOUT_S} s")
        await asyncio.sleep(POLL_S)

    async def _watch(self) -> None:
        """Report every service that ends; never returns."""
        services = [child for child in self._children if child.role in SERVICES]
        while True:
            for child in [child for child in services if child.exit_code is not None]:
                services.remove(child)
                self._say(str(_failed(child, f"died with exit code {child.exit_code}")))
            await asyncio.sleep(POLL_S)

    def _record(self, ready: bool = False) -> None:
        """Write down what runs, for `nsync testbed status` and `down`."""
        services = [child for child in self._children if child.role in SERVICES]
        children = {i.name: {c.role: c.id for c in services if c.instance == i.name} for i in self._layout.instances}
        layouts.save(replace(self._layout, run=Run(ProcessId.of(os.getpid()), ready, children)))


def _failed(child: Child, what: str) -> StartFailed:
    lines = "\n".join(f"  {line}" for line in child.last_lines().splitlines())
    return StartFailed(f"{child.instance}: {child.role} {what}; its log {child.log} ends with\n{lines or '  nothing'}")


def _open(directory: Path, count: Optional[int]) -> Layout:
    """The testbed in `directory`, or a new one."""
    if not layouts.exists(directory):
        return layouts.plan(directory, count or DEFAULT_COUNT)
    layout = layouts.load(directory)
    if count not in (None, len(layout.instances)):
        raise StartFailed(f"the testbed in {directory} has {len(layout.instances)} instances for good; use another --dir for {count}")
    return layout


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """The right to run the testbed in `directory`: held by one process at a time, and given up when it dies."""
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(directory) from error
        yield


async def _until_signalled(supervisor: Supervisor) -> None:
    """Let `supervisor` live until it fails or SIGINT or SIGTERM arrives; further signals change nothing."""
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    life = asyncio.create_task(supervisor.live())
    await asyncio.wait({life, asyncio.create_task(signalled.wait())}, return_when=asyncio.FIRST_COMPLETED)
    life.cancel()
    with suppress(asyncio.CancelledError):
        await life
