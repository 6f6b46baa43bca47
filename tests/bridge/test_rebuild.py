"""A catalogue that other rules made: nothing is applied on top of it, and a rebuild brings entries and rows up to date."""

from __future__ import annotations

import pytest
from sqlalchemy import delete

from nsync.errors import ConfigError
from nsync.failpoints import watched
from nsync.namespace.keys import Did
from nsync.store import kept, keyed, schema
from nsync.store.state import CATALOGUE
from tests.support.instances import Instance, everything, settle

HIDDEN = Did("cms", "d2")


def made_by_other_rules(instance: Instance) -> None:
    """The catalogue as a nsync would have left it that hid d2, rows included."""
    with instance.session() as session:
        session.execute(delete(schema.entry).where(schema.entry.c.key == keyed.indexed(HIDDEN)))
        kept.write(session.connection(), CATALOGUE, b"0")
    assert not instance.query("SELECT id FROM nsync_outbox")
    instance.delete_did("cms", "d2")
    with instance.session() as session:
        session.execute(delete(schema.outbox))


def test_rebuilding_writes_the_rows_of_what_the_rules_show_now(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    cms.add_did("cms", "d1")
    cms.add_did("cms", "d2")
    settle(federation)
    made_by_other_rules(atlas)
    assert atlas.rows() != cms.rows()
    assert atlas.bridge.rebuild(atlas.now_ms) == 1
    assert atlas.rows() == cms.rows()
    assert HIDDEN in atlas.catalogue()
    cms.add_did("cms", "d3")
    settle(federation)
    assert atlas.rows() == cms.rows()


def test_nothing_is_applied_before_and_the_error_says_what_to_do(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    cms.add_did("cms", "d2")
    settle(federation)
    made_by_other_rules(atlas)
    cms.add_did("cms", "d3")
    cms.work()
    atlas.fetch(cms)
    with pytest.raises(ConfigError, match="run 'nsync bridge rebuild'"):
        atlas.work()
    assert Did("cms", "d3") not in atlas.catalogue()


def test_what_was_changed_here_meanwhile_is_published_and_not_overwritten(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    cms.add_did("cms", "d2")
    settle(federation)
    made_by_other_rules(atlas)
    atlas.add_did("atlas", "mine")
    atlas.bridge.rebuild(atlas.now_ms)
    settle(federation)
    assert Did("atlas", "mine") in cms.catalogue()
    assert atlas.rows() == cms.rows()


def test_a_rebuild_that_ends_in_the_middle_leaves_everything_as_it_was(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    cms.add_did("cms", "d2")
    settle(federation)
    made_by_other_rules(atlas)
    before = everything(atlas)

    def cut(name: str) -> None:
        if name == "rebuild-derived":
            raise InterruptedError

    with pytest.raises(InterruptedError), watched(cut):
        atlas.bridge.rebuild(atlas.now_ms)
    assert everything(atlas) == before
