"""A federation of lone nodes (tests.support.lone): real processes on one machine, with the faulty network between them.

    async with Lones(directory, names, seed) as lones:
        await lones.start()
        await lones["atlas"].ask("publish")

Each instance is a member of its own, the home of its scopes, and everybody's guest in `<name>.shared`. What a process said stands in the
text of whatever fails. All processes are ended when the block is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from nsync.auth.keys import SigningKey
from nsync.authority.documents import draft, sign
from nsync.testbed.layout import free_ports
from nsync.testing.federation import NAMES, SHARED
from tests.support.lone import LOOPBACK, Config
from tests.support.proxy import Proxy

EIGHT = (*NAMES, "virgo")
ROOT = Path(__file__).parents[2]
ANSWER_S_MAX = 60.0
"""On a machine that is busy; the same for the start, which imports much."""
STOP_S_MAX = 20.0
LINE_BYTES_MAX = 1 << 24
POLL_S = 0.05
INTERVAL_S = 1.0
"""Of anti-entropy: the default is 5 s, and the story is short."""


def charter_document(ports: dict[str, int]) -> str:
    """The signed charter of the instances that are reached at these ports."""
    roots = [SigningKey(bytes([number + 101]) * 32) for number in range(len(ports))]
    members = [
        {
            "name": name.upper(),
            "roots": [root.public.hex()],
            "threshold": 1,
            "instances": [
                {
                    "name": name,
                    "key": key_of(number).public.hex(),
                    "incarnation": bytes([number + 201] * 16).hex(),
                    "url": f"http://{LOOPBACK}:{port}",
                    "scopes": [name],
                    "dois": [f"10.5072/{name.upper()}."],
                    "guests": {other: [name + SHARED] for other in ports if other != name},
                }
            ],
        }
        for number, ((name, port), root) in enumerate(zip(ports.items(), roots))
    ]
    document = draft("lone", members)
    for root in roots:
        document = sign(document, root)
    return json.dumps(document)


def key_of(number: int) -> SigningKey:
    return SigningKey(bytes([number + 1]) * 32)


class Lones:
    """The processes, and `proxy` between them; without one (`proxied=False`) they reach each other directly."""

    def __init__(
        self, directory: Path, names: Sequence[str] = EIGHT, seed: int = 0, proxied: bool = True, interval_s: float = INTERVAL_S
    ) -> None:
        ports = free_ports(2 * len(names))
        self._listen = dict(zip(names, ports))
        """Where the processes listen."""
        self._known = dict(zip(names, ports[len(names) :])) if proxied else self._listen
        addresses = {name: f"127.0.0.{number + 10}" for number, name in enumerate(names)}
        self.proxy = Proxy(addresses, seed)
        charter = directory / "charter.json"
        charter.write_text(charter_document(self._known))
        self.all: list[Process] = []
        for number, name in enumerate(names):
            home = directory / name
            home.mkdir()
            key_of(number).save(home / "nsync.key")
            config = Config(
                name, str(charter), str(home / "nsync.key"), str(home / "store.db"), self._listen[name], addresses[name], interval_s, seed
            )
            self.all.append(Process(config, home))
        self._by_name = {process.name: process for process in self.all}

    def __getitem__(self, name: str) -> Process:
        return self._by_name[name]

    async def __aenter__(self) -> Lones:
        if self._known is not self._listen:
            for name, port in self._known.items():
                await self.proxy.listen(name, port, self._listen[name])
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.gather(*(process.kill() for process in self.all))
        finally:
            await self.proxy.close()

    async def start(self, *names: str) -> None:
        """Start these, or all; each can be asked then."""
        await asyncio.gather(*(self[name].start() for name in names or self._by_name))

    async def states(self, *names: str) -> list[dict[str, Any]]:
        """What each of these, or all, says of its store."""
        return list(await asyncio.gather(*(self[name].ask("state") for name in names or self._by_name)))

    async def settled(self, seconds_max: float, *names: str) -> list[dict[str, Any]]:
        """The states of these, or all, once they are the same everywhere, and nothing waits; fails when that takes longer."""
        found: list[dict[str, Any]] = []

        async def same() -> bool:
            found[:] = await self.states(*names)
            return all(state == found[0] and not state["waits"] for state in found)

        await until(same, seconds_max, lambda: "\n".join(str(state["digests"]) for state in found) + self.said())
        return found

    def said(self) -> str:
        """The logs of all processes."""
        return "".join(f"\n---- {process.name}\n{process.said()}" for process in self.all)


class Process:
    """One lone node; started again it goes on with the same database."""

    def __init__(self, config: Config, home: Path) -> None:
        self.name = config.name
        self.database = Path(config.database)
        self._config = home / "config.json"
        self._config.write_text(json.dumps(config._asdict()))
        self._log = home / "log"
        self._child: Optional[asyncio.subprocess.Process] = None

    async def start(self, failpoint: str = "") -> None:
        """Start it, and return when peers can ask it; with a `failpoint` it may be killed before that."""
        assert self._child is None, f"{self.name} runs already"
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.lone", str(self._config)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NSYNC_FAILPOINT": failpoint},
                limit=LINE_BYTES_MAX,
            )
        await self._answer(or_killed=bool(failpoint))

    async def ask(self, do: str, **more: Any) -> Any:
        """What it answers."""
        self._tell(do, more)
        return await self._answer()

    async def ask_or_killed(self, do: str, **more: Any) -> Any:
        """What it answers; None when a failpoint kills it before."""
        self._tell(do, more)
        return await self._answer(or_killed=True)

    def _tell(self, do: str, more: dict[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None, f"{self.name} does not run"
        self._child.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")

    async def _answer(self, or_killed: bool = False) -> Any:
        assert self._child is not None and self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), ANSWER_S_MAX)
        assert line or or_killed, f"{self.name} ended, and said:\n{self.said()}"
        return json.loads(line or b"null")

    async def kill(self) -> None:
        """End it as a power cut would, if it runs."""
        if self._child is not None:
            if self._child.returncode is None:
                self._child.kill()
            await self._end()

    async def stop(self) -> None:
        """End it in order."""
        code = await self._end()
        assert code == 0, f"{self.name} ended with {code}, and said:\n{self.said()}"

    async def killed(self, seconds_max: float = ANSWER_S_MAX) -> None:
        """Wait until a failpoint has killed it."""
        assert self._child is not None
        child = self._child
        await until(lambda: child.returncode is not None, seconds_max, lambda: f"{self.name} lives:\n{self.said()}")
        code = await self._end()
        assert code == -9, f"{self.name} ended with {code}, and said:\n{self.said()}"

    async def _end(self) -> int:
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None and child.stdout is not None
        child.stdin.close()
        try:
            await asyncio.wait_for(child.stdout.read(), STOP_S_MAX)
        except asyncio.TimeoutError:
            child.kill()
            await child.stdout.read()
        return await child.wait()

    def said(self) -> str:
        """Its log, that of earlier processes on this database included."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


async def until(holds: Callable[[], Union[bool, Awaitable[bool]]], seconds_max: float, what: Callable[[], str]) -> None:
    """Return when `holds()`, or fail with the text of `what()`."""
    end = time.monotonic() + seconds_max
    while not ((await found) if isinstance(found := holds(), Awaitable) else found):
        assert time.monotonic() < end, f"not within {seconds_max:g} s: {what()}"
        await asyncio.sleep(POLL_S)
