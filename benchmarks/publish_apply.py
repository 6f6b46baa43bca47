"""How fast a dataset crosses from one Rucio database to another, beside a rival and a floor of the same run.

    python benchmarks/publish_apply.py [--files 5000]

One process, two real Rucio databases on SQLite. Measured in CPU seconds of this process, since the machine may have other work:

    publish   capture, sign, log, apply at the origin (three rows of Rucio a file: DID, attachment, replica)
    apply     verify, log, merge, catalogue, and the same three rows at the other instance
    rival     Rucio's own core writing the same rows (add_replicas and attach_dids, 500 files a call)
    floor     bare executemany of the same three rows
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent
BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    files = parser.parse_args().files
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as directory:
        rates = measure(Path(directory), files)
    rates["publish_to_rival"] = round(rates["publish_files_per_s"] / rates["rival_files_per_s"], 3)
    rates["apply_to_rival"] = round(rates["apply_files_per_s"] / rates["rival_files_per_s"], 3)
    rates["apply_to_floor"] = round(rates["apply_files_per_s"] / rates["floor_files_per_s"], 3)
    print(json.dumps(rates, indent=2))


def measure(directory: Path, files: int) -> dict[str, float]:
    template = make_template(directory)
    from tests.support.instances import Instance  # after RUCIO_CONFIG is set: Rucio reads it at import

    atlas, cms = Instance(template, directory, "atlas", ["atlas"]), Instance(template, directory, "cms")
    names = [f"file.{number:07d}.root" for number in range(files)]
    atlas.add_scope("atlas")
    atlas.add_did("atlas", "dataset")
    rival = rate(files, lambda: write_by_core(atlas, names))
    atlas.set_open("atlas", "dataset", False)
    publish = rate(files, atlas.work)
    cms.fetch(atlas)
    apply = rate(files, cms.work)
    assert cms.rows() == atlas.rows() and len(cms.rows()["replicas"]) == files
    floor = rate(files, lambda: write_bare(atlas, names))
    frames = sum(map(len, atlas.frames()))
    for instance in (atlas, cms):
        instance.close()
    return {
        "files": files,
        "publish_files_per_s": publish,
        "apply_files_per_s": apply,
        "rival_files_per_s": rival,
        "floor_files_per_s": floor,
        "log_bytes_per_file": round(frames / files, 1),
    }


def make_template(directory: Path) -> Path:
    from nsync.testbed import instance, layout

    plan = layout.plan(directory / "template", 1).instances[0]
    instance.write_files(plan, directory / "charter.json")
    os.environ.update({"RUCIO_HOME": str(plan.home), "RUCIO_CONFIG": str(plan.server_config)})
    subprocess.run([sys.executable, "-m", "nsync.testbed.initdb", "DISK", f"{plan.storage}/"], check=True)
    from tests.support.instances import install

    install(plan.home / "rucio.db")
    connection = sqlite3.connect(plan.home / "rucio.db")
    connection.execute("VACUUM INTO ?", (str(directory / "template.db"),))
    connection.close()
    return directory / "template.db"


def write_by_core(instance: object, names: list[str]) -> None:
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        instance.add_files("atlas", batch)  # type: ignore[attr-defined]
        instance.attach("atlas", "dataset", [("atlas", name) for name in batch])  # type: ignore[attr-defined]


def write_bare(instance: object, names: list[str]) -> None:
    """The same three rows a file as strings, without the triggers' filter letting any through."""
    now = datetime(2026, 1, 1).isoformat(" ")
    engine = instance.engine  # type: ignore[attr-defined]
    with engine.begin() as connection:
        rse = connection.exec_driver_sql("SELECT id FROM rses").scalar()
        connection.exec_driver_sql(
            "INSERT INTO scopes (scope, account, is_default, status, created_at, updated_at) VALUES ('bare', 'root', 0, 'O', ?, ?)",
            (now, now),
        )
        did = "INSERT INTO dids (scope, name, account, did_type, is_open, bytes, adler32, availability, monotonic, hidden, obsolete, suppressed, purge_replicas, transient, created_at, updated_at) VALUES ('bare', ?, 'root', ?, ?, 10, '00000001', 'A', 0, 0, 0, 0, 1, 0, ?, ?)"
        connection.exec_driver_sql(did, ("dataset", "D", 1, now, now))
        connection.exec_driver_sql(did, [(name, "F", None, now, now) for name in names])
        content = "INSERT INTO contents (scope, name, child_scope, child_name, did_type, child_type, bytes, adler32, rule_evaluation, created_at, updated_at) VALUES ('bare', 'dataset', 'bare', ?, 'D', 'F', 10, '00000001', 1, ?, ?)"
        connection.exec_driver_sql(content, [(name, now, now) for name in names])
        replica = "INSERT INTO replicas (rse_id, scope, name, bytes, adler32, state, lock_cnt, created_at, updated_at) VALUES (?, 'bare', ?, 10, '00000001', 'A', 0, ?, ?)"
        connection.exec_driver_sql(replica, [(rse, name, now, now) for name in names])


def rate(files: int, work: Callable[[], object]) -> float:
    """Files a CPU second."""
    began = time.process_time()
    work()
    return round(files / (time.process_time() - began), 1)


if __name__ == "__main__":
    main()
