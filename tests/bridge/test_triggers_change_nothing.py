"""Rucio's own writes have the same results with nsync's triggers and without them: every row of every table of Rucio's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rucio.db.sqla import models
from rucio.db.sqla.types import GUID
from sqlalchemy import DateTime, literal, select

from nsync.namespace.keys import Did
from nsync.rucio_bridge import triggers
from tests.bridge.test_poll import acts
from tests.support.deeds import Act, do
from tests.support.federations import lone
from tests.support.instances import Instance


def rows(instance: Instance) -> dict[str, Counter[tuple[Any, ...]]]:
    """Every row of Rucio's tables, without times and without ids that are drawn."""
    found: dict[str, Counter[tuple[Any, ...]]] = {}
    with instance.sessions() as session:
        for table in models.BASE.metadata.sorted_tables:
            columns = [column for column in table.columns if not isinstance(column.type, (DateTime, GUID))]
            found[table.name] = Counter(
                tuple(map(repr, row)) for row in session.execute(select(*columns or [literal(1)]).select_from(table))
            )
    return found


@pytest.mark.parametrize("back_end", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_stock_calls_have_the_same_results(request: pytest.FixtureRequest, back_end: str, tmp_path: Path) -> None:
    ends = []
    for captured in (True, False):
        (directory := tmp_path / str(captured)).mkdir()
        with lone(request, back_end, directory) as instance:
            if not captured:
                assert triggers.remove_beside(instance.engine) > 30
            instance.add_scope("atlas")
            instance.add_scope("private")
            history = acts(5)
            for act in [*history, *acts(6), Act("atlas", "publish", Did("atlas", "d3"), ("f4",))]:
                do(instance, act)
            instance.add_rule("atlas", "d3")
            ends.append((rows(instance), instance.query("SELECT count(*) FROM nsync_outbox")[0][0]))
    (with_triggers, told), (without, untold) = ends
    assert told > 20 and untold == 0
    for table, found in without.items():
        assert with_triggers[table] == found, table
    assert sum(map(len, without.values())) > 50
