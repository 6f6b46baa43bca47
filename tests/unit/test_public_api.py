"""The names that nsync gives out: light to import, sorted, and all there."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import nsync

SOURCE = Path(nsync.__file__).parent
HEAVY = ("sqlalchemy", "aiohttp", "nacl", "rucio", "alembic", "click", "rich", "prometheus_client", "zstandard")
PURE = ("nsync.crdt", "nsync.namespace.ops", "nsync.authority.effective", "nsync.log.admission", "nsync.catalogue.reference")


def _module(path: Path) -> str:
    return ".".join(("nsync", *path.relative_to(SOURCE).with_suffix("").parts)).replace(".__init__", "")


WITH_ALL = [path for path in sorted(SOURCE.rglob("*.py")) if "__all__" in path.read_text(encoding="utf-8")]


def test_the_version_is_the_packages() -> None:
    assert nsync.__version__ == version("nsync")


@pytest.mark.parametrize("module", ["nsync", *PURE])
def test_importing_it_loads_none_of_the_heavy_libraries(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", WITH_ALL, ids=_module)
def test_all_is_sorted_complete_and_there(path: Path) -> None:
    if "rucio_bridge" in path.parts:
        pytest.importorskip("rucio", reason="the bridge needs rucio")
    module = importlib.import_module(_module(path))
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
    if path.name == "__init__.py":
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        froms = [s for s in statements if isinstance(s, ast.ImportFrom) and s.module != "__future__"]
        given = {alias.asname or alias.name for s in froms for alias in s.names}
        assert given <= {*names} | {name for name in given if name.startswith("_")}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        _module(path)
        for path in sorted(SOURCE.rglob("*.py"))
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == ["nsync.__main__"] or silent == []
