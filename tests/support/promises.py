"""What holds once everybody has heard everything, whatever went before: one function for each promise, told by its name.

Where users changed rows that they have no right to change, an instance's rows may differ from the catalogue, and only there (R7.5): each
check that compares with other instances leaves out what `Changes` knows of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rucio.rse.translation import RSEDeterministicTranslation

from nsync.log.segment import decode_frame
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Rse, fact_of
from nsync.namespace.ops import decode_op
from nsync.rucio_bridge.rows import matches
from tests.support.database import contents
from tests.support.federation import AUTHORITY, NAMES
from tests.support.federations import SHARED
from tests.support.instances import everything, settle
from tests.support.story import Story, dids_of, names_of, rows_of

Table = frozenset[tuple[Any, ...]]


def check_one_state(story: Story) -> None:
    states = [contents(instance.engine) for instance in story.instances.values()]
    for part in ("heads", "slots", "about", "catalogue"):
        for state in states[1:]:
            assert state[part] == states[0][part], part


def check_equal_conflicts(story: Story) -> None:
    first, *others = (instance.conflicts() for instance in story.instances.values())
    for other in others:
        assert other == first


def _decides(story: Story, name: str, fact: Fact) -> bool:
    """Whether nothing but this instance's own word counts: a DID in a scope of its own, about which there is no conflict."""
    if not isinstance(fact, Did) or fact.scope not in SHARED[name]:
        return False
    home = AUTHORITY.charter.home(fact.scope)
    return home is not None and home.name == name and fact not in story.instances[name].conflicts()


def check_rows_are_the_catalogue(story: Story) -> None:
    for name, instance in story.instances.items():
        changes, parked = story.changes[name], instance.parked()
        catalogue = instance.catalogue()
        written = instance.written(catalogue.keys())
        for fact, entry in catalogue.items():
            if fact in parked:
                continue
            if fact not in written:
                assert fact in changes.removed and not _decides(story, name, fact), f"{name} lacks {fact}"
            elif not matches(entry, written[fact]):
                excused = fact in changes.changed | changes.added and not _decides(story, name, fact)
                assert excused, f"{name}: {fact} is {written[fact]}, not {entry}"
        for fact in rows_of(instance).keys() - catalogue.keys() - parked.keys():
            assert fact in changes.added and not _decides(story, name, fact), f"{name} still has {fact}"


def check_shared_rows_are_equal(story: Story) -> None:
    """But for what an instance cannot take in, or changed without the right to."""
    excused: set[Fact] = set()
    for name, instance in story.instances.items():
        changes = story.changes[name]
        catalogue = instance.catalogue()
        written = instance.written(catalogue.keys())
        drift = {fact for fact, entry in catalogue.items() if not matches(entry, written.get(fact))}
        drift |= (rows_of(instance).keys() & changes.added) - catalogue.keys()
        excused |= instance.parked().keys() | drift
    excused_dids = {did for fact in excused for did in dids_of(fact)}
    edges = [f for i in story.instances.values() for f in rows_of(i) if isinstance(f, (Attachment, Constituent))]
    while above := {Did(*edge[1:3]) for edge in edges if Did(*edge[3:5]) in excused_dids} - excused_dids:
        excused_dids |= above  # their sizes differ
    names = {(did.scope, did.name) for did in excused_dids} | {name for fact in excused for name in names_of(fact)}
    first, *others = [_without(instance.rows(), names) for instance in story.instances.values()]
    for rows in others:
        for table in first.keys() & rows.keys():  # JSON is in no database of SQLite
            assert rows[table] == first[table], f"{table}: {sorted(rows[table] ^ first[table], key=repr)}"


def _without(rows: Mapping[str, Table], names: set[tuple[str, ...]]) -> dict[str, Table]:
    two = {"contents", "archive_contents"}
    return {
        table: frozenset(row for row in found if not {row[:1], row[:2], row[2:4] if table in two else ()} & names)
        for table, found in rows.items()
    }


def check_paths_are_those_at_home(story: Story) -> None:
    """A foreign replica lies where Rucio at its own instance finds it."""
    query = (
        "SELECT r.scope, r.name, s.rse, r.path FROM replicas r JOIN rses s ON s.id = r.rse_id "
        "JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin' WHERE a.value = :origin"
    )
    for name, instance in story.instances.items():
        for origin, other in story.instances.items():
            there = {fact: said for fact, said in rows_of(other).items() if fact[0] == 6}
            for scope, did, rse, path in instance.query(query, origin=origin):
                place = Rse(origin, rse[len(origin) + 1 :])
                known: Any = next((said for fact, said in there.items() if fact.rse == place and fact.did == Did(scope, did)), None)  # type: ignore[union-attr]
                if known is not None:
                    want = known[1] or RSEDeterministicTranslation("DISK", {}).path(scope, did)
                    assert path == want.lstrip("/"), f"{name}: {scope}:{did} at {place}"


_FOREIGN = "JOIN rse_attr_map a ON a.rse_id = r.rse_id AND a.key = 'nsync_origin'"
_NEVER = {
    "an attachment has no parent": (
        "SELECT c.name FROM contents c LEFT JOIN dids d ON d.scope = c.scope AND d.name = c.name WHERE d.name IS NULL"
    ),
    "an attachment has no child": (
        "SELECT c.child_name FROM contents c LEFT JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name WHERE d.name IS NULL"
    ),
    "a constituent has no archive": (
        "SELECT c.name FROM archive_contents c LEFT JOIN dids d ON d.scope = c.scope AND d.name = c.name WHERE d.name IS NULL"
    ),
    "a constituent has no file": (
        "SELECT c.name FROM archive_contents c LEFT JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name WHERE d.name IS NULL"
    ),
    "a replica has no file": "SELECT r.name FROM replicas r LEFT JOIN dids d ON d.scope = r.scope AND d.name = r.name WHERE d.name IS NULL",
    "a replica has no RSE": "SELECT r.name FROM replicas r LEFT JOIN rses s ON s.id = r.rse_id WHERE s.id IS NULL",
    "a lock has no replica": (
        "SELECT l.name FROM locks l LEFT JOIN replicas r ON r.scope = l.scope AND r.name = l.name AND r.rse_id = l.rse_id "
        "WHERE r.name IS NULL"
    ),
    "a lock has no rule": "SELECT l.name FROM locks l LEFT JOIN rules r ON r.id = l.rule_id WHERE r.id IS NULL",
    "open data have no DID": (
        "SELECT o.name FROM dids_opendata o LEFT JOIN dids d ON d.scope = o.scope AND d.name = o.name WHERE d.name IS NULL"
    ),
    "a count of locks is wrong": (
        "SELECT r.name, r.lock_cnt FROM replicas r WHERE r.lock_cnt <> "
        "(SELECT count(*) FROM locks l WHERE l.scope = r.scope AND l.name = r.name AND l.rse_id = r.rse_id)"
    ),
    "a foreign replica could be deleted": f"SELECT r.name FROM replicas r {_FOREIGN} WHERE r.tombstone IS NOT NULL",
    "a foreign replica differs from its file": (
        f"SELECT r.name FROM replicas r {_FOREIGN} "
        "JOIN dids d ON d.scope = r.scope AND d.name = r.name WHERE r.bytes <> d.bytes OR r.adler32 <> d.adler32"
    ),
    "a foreign replica is at none of the states that are shared": (
        f"SELECT r.name, r.state FROM replicas r {_FOREIGN} WHERE r.state NOT IN ('A', 'D', 'T')"
    ),
    "an attachment copies another size than its file's": (
        "SELECT c.child_name FROM contents c JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name "
        "WHERE c.child_type = 'F' AND (c.bytes <> d.bytes OR c.adler32 <> d.adler32)"
    ),
    "a foreign RSE can be written": (
        "SELECT r.rse FROM rses r JOIN rse_attr_map a ON a.rse_id = r.id AND a.key = 'nsync_origin' "
        "WHERE r.availability_write OR r.availability_delete OR r.deterministic"
    ),
}


def check_no_orphans_and_no_broken_rows(story: Story) -> None:
    for name, instance in story.instances.items():
        for fault, query in _NEVER.items():
            found = instance.query(query)
            assert found == [], f"{name}: {fault}: {found}"
        if instance.engine.dialect.name == "sqlite":
            assert instance.query("PRAGMA foreign_key_check") == [], f"{name}: foreign keys are broken"


def check_no_cycles(story: Story) -> None:
    for name, instance in story.instances.items():
        edges = instance.query("SELECT scope, name, child_scope, child_name FROM contents WHERE child_type <> 'F'")
        below = {edge[:2]: {e[2:] for e in edges if e[:2] == edge[:2]} for edge in edges}
        while leaves := [did for did, children in below.items() if not children & below.keys()]:
            for did in leaves:
                del below[did]
        local = {f for f in story.changes[name].added if isinstance(f, Attachment)}
        assert not below or local, f"{name}: {below} is a cycle"


def check_public_data_are_closed(story: Story) -> None:
    query = (
        "SELECT d.scope, d.name FROM dids d JOIN dids_opendata o ON o.scope = d.scope AND o.name = d.name "
        "WHERE o.state = 'P' AND d.is_open AND d.did_type <> 'F'"
    )
    for name, instance in story.instances.items():
        opened = {Did(*row) for row in instance.query(query)}
        assert opened <= story.changes[name].changed | instance.parked().keys(), f"{name}: public and open"


def check_sizes_of_closed_collections(story: Story) -> None:
    query = (
        "SELECT d.scope, d.name, coalesce(d.bytes, 0), coalesce(d.length, 0), coalesce(sum(c.bytes), 0), count(c.child_name) FROM dids d "
        "LEFT JOIN contents c ON c.scope = d.scope AND c.name = d.name WHERE d.did_type = 'D' AND NOT d.is_open "
        "GROUP BY d.scope, d.name, d.bytes, d.length"
    )
    for name, instance in story.instances.items():
        emptied = {fact.parent for fact in story.changes[name].removed if isinstance(fact, Attachment)}
        for scope, dataset, size, length, sum_of_sizes, count in instance.query(query):
            known = Did(scope, dataset) in emptied and count == 0  # Rucio keeps a DID with parents that is to be deleted, and empties it
            assert (size, length) == (sum_of_sizes, count) or known, f"{name}: {scope}:{dataset}"


def check_counters(story: Story) -> None:
    """Each change of an RSE is counted once: what `rse_usage` and what waits to be added to it make its replicas."""
    parts = []
    for column, counted, used in (("files", "count(*)", "files"), ("bytes", "coalesce(sum(r.bytes), 0)", "used")):
        parts.append(f"(SELECT {counted} FROM replicas r WHERE r.rse_id = s.id)")
        parts.append(
            f"(SELECT coalesce(sum(u.{column}), 0) FROM updated_rse_counters u WHERE u.rse_id = s.id) + "
            f"(SELECT coalesce(sum(g.{used}), 0) FROM rse_usage g WHERE g.rse_id = s.id AND g.source = 'rucio')"
        )
    for name, instance in story.instances.items():
        for rse, files, files_counted, size, size_counted in instance.query(f"SELECT s.rse, {', '.join(parts)} FROM rses s"):
            assert (files, size) == (files_counted, size_counted), f"{name}: {rse}"


def check_private_names_stay(story: Story) -> None:
    """No segment names what was never below open data (R7.2)."""
    (atlas, *_) = story.instances.values()
    said = {s.key for frame in atlas.frames() for op in decode_frame(frame).ops for s in decode_op(op)}
    named = {did for key in said for did in dids_of(fact_of(key))}
    for name in NAMES:
        private = {did for did in named if did.scope == f"{name}.private"}
        assert private <= story.changes[name].reachable, f"{name} told {private - story.changes[name].reachable}"


def check_a_further_cycle_writes_nothing(story: Story) -> None:
    before = {name: everything(instance) for name, instance in story.instances.items()}
    settle(list(story.instances.values()))
    for name, instance in story.instances.items():
        instance.bridge.retry_parked(instance.now_ms)
        after = everything(instance)
        for table in after:
            assert after[table] == before[name][table], f"{name}: {table}"


PROMISES: Sequence[Callable[[Story], None]] = (
    check_one_state,
    check_equal_conflicts,
    check_rows_are_the_catalogue,
    check_shared_rows_are_equal,
    check_paths_are_those_at_home,
    check_no_orphans_and_no_broken_rows,
    check_no_cycles,
    check_public_data_are_closed,
    check_sizes_of_closed_collections,
    check_counters,
    check_private_names_stay,
    check_a_further_cycle_writes_nothing,
)


def keep(story: Story) -> None:
    """Let everybody settle, and check every promise."""
    story.settle()
    for promise in PROMISES:
        promise(story)
