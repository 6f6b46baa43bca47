"""What users do at one instance, done with nothing but the stock `rucio` command: publish, suspend, download."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nsync.errors import NsyncError
from nsync.testbed.charter import doi_prefix
from nsync.testbed.instance import ACCOUNT, RSE, client_environment
from nsync.testbed.layout import Instance

COMMAND_TIMEOUT_S = 120

FILE_BYTES_MIN, FILE_BYTES_MAX = 10_000, 200_000

RUCIO = str(Path(sys.executable).with_name("rucio"))
"""The stock command of the same environment."""


class CommandFailed(NsyncError):
    """A stock command failed; the text holds what it printed."""


@dataclass(frozen=True)
class Dataset:
    """A published dataset, and the SHA-256 of each of its files as they were made."""

    instance: str
    scope: str
    name: str
    digests: Mapping[str, str]

    @property
    def did(self) -> str:
        return f"{self.scope}:{self.name}"


def rucio(instance: Instance, *arguments: str) -> str:
    """Run `rucio ARGUMENTS` against `instance`; what it prints. Raises CommandFailed."""
    done = subprocess.run(
        [RUCIO, *arguments], env=client_environment(instance), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise CommandFailed(
            f"{instance.name}: 'rucio {' '.join(arguments)}' ended with code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def open_scope(instance: Instance) -> str:
    """The scope that `instance` publishes in."""
    return f"{instance.name}.open"


def add_scope(instance: Instance) -> None:
    rucio(instance, "scope", "add", open_scope(instance), "--account", ACCOUNT)


def publish(instance: Instance, number: int, file_count: int) -> Dataset:
    """Make files of random bytes, upload them as a dataset, close it, give it a DOI and make it public."""
    scope, name = open_scope(instance), f"demo-{number}"
    paths = _make_files(instance.home / "produced" / name, file_count)
    dataset = Dataset(instance.name, scope, name, digests(paths[0].parent))
    rucio(instance, "did", "add", "--type", "dataset", dataset.did)
    rucio(instance, "upload", "--rse", RSE, "--scope", scope, dataset.did, *map(str, paths))
    rucio(instance, "did", "update", "--close", dataset.did)
    rucio(instance, "opendata", "did", "add", dataset.did)
    rucio(instance, "opendata", "did", "update", "--doi", f"{doi_prefix(instance.name)}DEMO.{number}", "--state", "public", dataset.did)
    return dataset


def suspend(instance: Instance, dataset: Dataset) -> None:
    """Withdraw a public dataset from view."""
    rucio(instance, "opendata", "did", "update", "--state", "suspended", dataset.did)


def download(instance: Instance, dataset: Dataset) -> dict[str, str]:
    """Download `dataset` at `instance`; the SHA-256 of each file that arrived."""
    target = instance.home / "downloaded"
    rucio(instance, "download", "--dir", str(target), dataset.did)
    return digests(target / dataset.name)


def digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file in `directory`, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def _make_files(directory: Path, count: int) -> list[Path]:
    """`count` new files named after `directory`."""
    directory.mkdir(parents=True)
    paths = [directory / f"{directory.name}.{number:05d}.root" for number in range(1, count + 1)]
    for path in paths:
        path.write_bytes(os.urandom(random.randint(FILE_BYTES_MIN, FILE_BYTES_MAX)))  # noqa: S311 (a size is no secret)
    return paths
