"""Three instances on copies of one Rucio database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.instances import Instance

SHARED = {"atlas": ["atlas.shared", "atlas"], "cms": ["atlas.shared", "cms"], "belle2": ["atlas.shared", "belle2"]}


@pytest.fixture
def instances(template_database: Path, tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2; each shares its own scope, and all share atlas.shared."""
    made = [Instance(template_database, tmp_path, name, shared) for name, shared in SHARED.items()]
    yield made
    for instance in made:
        instance.close()
