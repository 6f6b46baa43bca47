"""The examples run as they stand, and what the README and docs point at is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LINES_MAX = 59
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

SAID = {
    "hello.py": ["Did('atlas.open', 'd1'): DidEntry(", "origin='atlas'"],
    "two_writers.py": ["atlas.shared:f1 in atlas.shared:d1", "identity is for ever (R3.6)", "winner='atlas: file of 1 bytes'"],
    "stand_alone_store.py": [
        "a gap",
        "its ops are not those that its header signs",
        "stored 4, refused []",
        "applied 6-7: 2 entries changed",
    ],
}
"""What each example prints, in this order."""


def run(path: Path, directory: Path) -> str:
    """What the example at `path` prints, run from `directory` without any configuration of Rucio."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUCIO_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", sorted(SAID))
def test_an_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    said = run(EXAMPLES / name, tmp_path)
    places = [said.find(text) for text in SAID[name]]
    assert -1 not in places and places == sorted(places), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(SAID))
def test_an_example_is_short_and_needs_nothing_of_the_tests(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    assert not re.search(r"^(from|import) tests\b", text, re.MULTILINE)


def test_the_readme_prints_the_first_example_as_it_stands() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert (EXAMPLES / "hello.py").read_text(encoding="utf-8").split('"""\n', 1)[1].strip() == shown.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_points_at_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    links = [link.split("#")[0] for link in found if "://" not in link]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    named = re.findall(r"`((?:src|tests|examples|docs|benchmarks)/[\w./-]+)`", text)
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []
