"""A batch for which there is no room is offered again and again: its signatures are checked once."""

from __future__ import annotations

from nsync.auth.keys import verify
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.rucio_bridge.bridge import Bridge
from nsync.store.database import writing
from nsync.store.intake import WAITING_SEGMENTS_MAX
from nsync.store.log import SqlLog
from tests.support.federation import AUTHORITY, CHARTER, KEYS
from tests.support.instances import EXPRESSION, Instance

MORE = 5


def test_a_batch_that_waits_for_room_is_verified_once(federation: list[Instance]) -> None:
    atlas, cms = federation[:2]
    before = len(atlas.frames())
    with writing(atlas.engine) as connection:
        log = SqlLog(connection, AUTHORITY)
        for _ in range(WAITING_SEGMENTS_MAX + MORE):
            log.publish([ACKNOWLEDGE], CHARTER.by_name("atlas").author, KEYS["atlas"].sign, atlas.now_ms)
    frames = atlas.frames()[before:]
    checked: list[bytes] = []

    def counted(key: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
        checked.append(signature)
        return verify(key, purpose, message, signature)

    me = CHARTER.by_name("cms")
    bridge = Bridge(cms.engine, AUTHORITY, me, KEYS["cms"].sign, counted, EXPRESSION)
    first = bridge.receive(frames, "atlas")
    assert first.full and first.stored == WAITING_SEGMENTS_MAX and len(checked) == len(frames)
    again = bridge.receive(frames, "atlas")
    assert again.full and again.rejected == first.rejected and again.stored == 0
    assert len(checked) == len(frames), "nothing was verified twice"
    cms.work()
    last = bridge.receive(frames, "atlas")
    assert (last.stored, last.rejected) == (MORE, ()) and len(checked) == len(frames)
    assert bridge.receive(frames, "atlas").stored == 0 and len(checked) == 2 * len(frames), "it is not kept for longer than that"
