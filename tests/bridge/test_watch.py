"""The watch: a commit of Rucio's wakes, what leaves the outbox empty does not, and a watch that broke is taken up again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import Engine, text

from nsync.rucio_bridge.watch import Watch
from nsync.transport.times import happens
from tests.support.instances import Instance

SOON_S = 10.0
"""A wake-up comes within a fraction of a second; this is for a busy machine."""
LONG_S = 1.0
"""Some looks."""


@asynccontextmanager
async def watched(engine: Engine) -> AsyncIterator[asyncio.Event]:
    """An event that the watch of this database sets."""
    news = asyncio.Event()
    with ThreadPoolExecutor(1) as executor:
        task = asyncio.ensure_future(Watch(engine, executor, retry_s=0.2).run(news.set))
        try:
            yield news
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def aside(job: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, job)


def test_a_commit_of_rucio_wakes(federation: list[Instance]) -> None:
    asyncio.run(_wakes(federation[0]))


async def _wakes(atlas: Instance) -> None:
    async with watched(atlas.engine) as news:
        for name in ("d1", "d2", "d3"):
            await aside(lambda: atlas.add_did("atlas", name))  # noqa: B023
            assert await happens(news, SOON_S), f"nobody was woken for {name}"
            await aside(atlas.work)
            await asyncio.sleep(LONG_S)
            news.clear()


def test_what_the_node_commits_itself_does_not_wake(federation: list[Instance]) -> None:
    asyncio.run(_sleeps(*federation[:2]))


async def _sleeps(atlas: Instance, cms: Instance) -> None:
    atlas.add_did("atlas", "d1")
    atlas.work()
    async with watched(cms.engine) as news:
        assert not await happens(news, LONG_S)
        await aside(lambda: cms.fetch(atlas))
        await aside(cms.work)
        assert not await happens(news, LONG_S), "it wrote rows of Rucio, and nobody captured them"


def test_a_watch_that_broke_is_taken_up_again(federation: list[Instance], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nsync.rucio_bridge.watch"):
        asyncio.run(_broken(federation[0], caplog))


async def _broken(atlas: Instance, caplog: pytest.LogCaptureFixture) -> None:
    async with watched(atlas.engine) as news:
        assert not await happens(news, LONG_S)
        await aside(lambda: rename(atlas.engine, "nsync_outbox", "away"))
        await asyncio.sleep(LONG_S)
        assert not news.is_set() and "are found by the poll" in caplog.text
        await aside(lambda: rename(atlas.engine, "away", "nsync_outbox"))
        await aside(lambda: atlas.add_did("atlas", "d1"))
        assert await happens(news, SOON_S), "it looks again"
        assert "wake the node again" in caplog.text and caplog.text.count("are found by the poll") == 1


def rename(engine: Engine, old: str, new: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
