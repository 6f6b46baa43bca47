"""Waiting for an event: for a time, and no longer than whoever waits is wanted."""

from __future__ import annotations

import asyncio

from nsync.transport.times import happens


def test_it_tells_whether_the_event_came() -> None:
    async def story() -> None:
        event = asyncio.Event()
        assert not await happens(event, 0.01)
        asyncio.get_running_loop().call_later(0.01, event.set)
        assert await happens(event, 30)
        assert await happens(event, 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_an_event_that_came_and_was_cleared_has_come() -> None:
    async def story() -> None:
        event = asyncio.Event()
        task = asyncio.ensure_future(happens(event, 30))
        await asyncio.sleep(0.01)
        event.set()
        event.clear()
        assert await task

    asyncio.run(story())


def test_who_is_cancelled_in_the_moment_of_the_event_ends() -> None:
    async def story() -> None:
        event = asyncio.Event()
        for turns in range(6):
            event.clear()
            task = asyncio.ensure_future(happens(event, 30))
            await asyncio.sleep(0.01)
            event.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            returned = not task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert returned or task.cancelled(), f"cancelled {turns} turns of the loop after the event"

    asyncio.run(story())
