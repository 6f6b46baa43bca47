"""Two instances that have grown: cms has of atlas a thing of every kind, and private ones of its own beside."""

from __future__ import annotations

from rucio.db.sqla.constants import DIDType

from tests.support.instances import Instance, settle

NOW = "CURRENT_TIMESTAMP, CURRENT_TIMESTAMP"
AT_CMS = "FROM rses WHERE rse = 'ATLAS_DISK'"


def into(table: str, columns: str, values: str) -> str:
    """A row that somebody puts in; `values` may end with where they come from."""
    chosen, _, source = values.partition(" FROM ")
    source = f" FROM {source}" if source else ""
    return f"INSERT INTO {table} ({columns}, created_at, updated_at) SELECT {chosen}, {NOW}{source}"


def content(values: str) -> str:
    return into("contents", "scope, name, child_scope, child_name, did_type, child_type", values)


def packed(values: str) -> str:
    return into("archive_contents", "child_scope, child_name, scope, name, bytes, length", values)


def replica(values: str) -> str:
    return into("replicas", "rse_id, scope, name, bytes, state, lock_cnt, path", f"id, {values}")


def opened(did: str, column: str, value: str) -> str:
    table = "dids_opendata" if column == "state" else f"dids_opendata_{column.removesuffix('_id')}"
    return into(table, f"scope, name, {column}", f"{did}, {value}")


GROWN = {"atlas": ["atlas"], "cms": ["cms", "atlas.shared"]}


def grow(atlas: Instance, cms: Instance) -> None:
    """What atlas shares, and a dataset of cms with private ones beside it."""
    for one in (atlas, cms):
        one.add_scope(one.name)
        one.add_scope(f"{one.name}.private")
    for tag in ("1", "2"):
        atlas.publish_dataset("atlas", f"d{tag}", doi=f"10.5072/ATLAS.D{tag}")
    atlas.add_did("atlas", "open")
    atlas.add_files("atlas", ["zip", "inside", "alone"])
    atlas.attach("atlas", "open", [("atlas", "zip"), ("atlas", "alone")])
    atlas.add_did("atlas", "box", DIDType.CONTAINER)
    atlas.attach("atlas", "box", [("atlas", "d1"), ("atlas", "open")])
    with atlas.engine.begin() as connection:
        run = connection.exec_driver_sql
        run(packed("'atlas', 'inside', 'atlas', 'zip', 10, 1"))
        run(opened("'atlas', 'd1'", "record_id", "7"))
        run("UPDATE dids SET project = 'mc', run_number = 5, hidden = TRUE WHERE name = 'd1.f0' OR name = 'open'")
        if connection.dialect.name == "postgresql":
            run(into("did_meta", "scope, name, meta", "'atlas', 'open', '{\"a\": 1}'"))
            run(opened("'atlas', 'd1'", "meta", '\'{"t": "x"}\''))
    cms.publish_dataset("cms", "c1")
    cms.add_files("cms.private", ["secret"])
    cms.add_did("cms.private", "mine")
    cms.attach("cms.private", "mine", [("cms.private", "secret")])
    settle([atlas, cms])
    for one in (atlas, cms):
        assert one.parked() == {}
