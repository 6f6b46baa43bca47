"""Three Rucio databases, and what their users, daemons, bridges and networks do to them (deeds).

Users know few names: in the scopes atlas, cms and belle2, the shared one atlas.shared, and a private one each. Whatever a bridge does in
between must leave alone what is each instance's own: see `OWN`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rucio.core import rse

from nsync.auth.keys import verify
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Replica, Rse, Scope, ends_of
from nsync.rucio_bridge.bridge import Bridge
from tests.support.deeds import DAEMONS, TAPE, Act, do
from tests.support.federation import AUTHORITY, KEYS, NAMES
from tests.support.instances import EXPRESSION, Instance, settle

# ---- what is each instance's own (R7.4): no bridge may change it

_LOCAL = "NOT EXISTS (SELECT 1 FROM rse_attr_map a WHERE a.rse_id = r.rse_id AND a.key = 'nsync_origin')"
OWN = {
    "rules": "SELECT * FROM rules",
    "locks": "SELECT * FROM locks",
    "dataset locks": "SELECT scope, name, rule_id, rse_id, account, state FROM dataset_locks",
    "requests": "SELECT * FROM requests",
    "quotas": "SELECT * FROM account_limits",
    "use of quotas": "SELECT * FROM account_usage",
    "counts of locks": "SELECT * FROM updated_account_counters",
    "own replicas": f"SELECT scope, name, rse_id, bytes, path, state, lock_cnt, tombstone FROM replicas r WHERE {_LOCAL}",
    "followers": "SELECT * FROM dids_followed",
    "own storage": f"SELECT * FROM rse_protocols r WHERE {_LOCAL}",
}
EXPIRY = "SELECT scope, name, expired_at, eol_at, suppressed FROM dids"


def own(instance: Instance) -> dict[str, Any]:
    found: dict[str, Any] = {what: frozenset(instance.query(query)) for what, query in OWN.items()}
    found["expiry"] = {(scope, name): tuple(rest) for scope, name, *rest in instance.query(EXPIRY)}
    return found


def check_own(instance: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for what in OWN:
        assert after[what] == before[what], f"the bridge of {instance} changed {what}: {sorted(before[what] ^ after[what], key=repr)}"
    there = before["expiry"].keys() & after["expiry"].keys()
    assert {did: after["expiry"][did] for did in there} == {did: before["expiry"][did] for did in there}, f"{instance}: expiry"
    new = after["expiry"].keys() - there
    assert not any(after["expiry"][did][0] for did in new), f"{instance}: what is new expires"


# ---- what they changed


class Changes:
    """What the users of one instance did to its rows: where its rows may differ from the catalogue, and only there (R7.5)."""

    def __init__(self) -> None:
        self.added: set[Fact] = set()
        self.removed: set[Fact] = set()
        self.changed: set[Fact] = set()
        self.reachable: set[Did] = set()
        """Everything that was below a DID that is or was PUBLIC."""

    def note(self, before: Mapping[Fact, object], after: Mapping[Fact, object]) -> None:
        self.added |= after.keys() - before.keys()
        self.removed |= before.keys() - after.keys()
        self.changed |= {fact for fact in before.keys() & after.keys() if before[fact] != after[fact]}

    def note_reachable(self, instance: Instance) -> None:
        found = {Did(*row) for row in instance.query("SELECT scope, name FROM dids_opendata WHERE state <> 'D'")}
        edges = [fact for fact in rows_of(instance) if isinstance(fact, (Attachment, Constituent))]
        while more := {Did(*edge[3:5]) for edge in edges if Did(*edge[1:3]) in found} - found:
            found |= more
        self.reachable |= found


_METADATA = ", ".join(f"d.{name}" for name in (*sorted(fields.METADATA), "monotonic", "hidden", "obsolete"))
_OPEN = "o.state, i.doi, n.record_id"
_HANGING = (
    "LEFT JOIN dids_opendata o ON o.scope = d.scope AND o.name = d.name LEFT JOIN dids_opendata_doi i ON i.scope = d.scope "
    "AND i.name = d.name LEFT JOIN dids_opendata_record n ON n.scope = d.scope AND n.name = d.name"
)
_DOCUMENTS = (
    " LEFT JOIN did_meta m ON m.scope = d.scope AND m.name = d.name LEFT JOIN dids_opendata_meta w ON w.scope = d.scope AND w.name = d.name"
)


def rows_of(instance: Instance) -> dict[Fact, object]:
    """Every DID, attachment, constituent and replica of the database, with what may change of it."""
    found: dict[Fact, object] = {}
    has_json = instance.engine.dialect.name == "postgresql"
    json_columns, json_tables = (", CAST(m.meta AS text), CAST(w.meta AS text)", _DOCUMENTS) if has_json else ("", "")
    dids = f"SELECT d.scope, d.name, d.did_type, d.is_open, {_OPEN}, {_METADATA}{json_columns} FROM dids d {_HANGING}{json_tables}"
    for scope, name, *rest in instance.query(dids):
        found[Did(scope, name)] = tuple(rest)
    for kind, table in ((Attachment, "contents"), (Constituent, "archive_contents")):
        for scope, name, child_scope, child_name in instance.query(f"SELECT scope, name, child_scope, child_name FROM {table}"):
            found[kind(Did(scope, name), Did(child_scope, child_name))] = ()
    replicas = (
        "SELECT r.scope, r.name, s.rse, a.value, r.state, r.path FROM replicas r JOIN rses s ON s.id = r.rse_id "
        "LEFT JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin'"
    )
    for scope, name, rse_name, origin, state, path in instance.query(replicas):
        place = Rse(instance.name, rse_name) if origin is None else Rse(origin, rse_name[len(origin) + 1 :])
        found[Replica(Did(scope, name), place)] = (state, path)
    return found


# ---- the story


class Story:
    """Three instances, and what happened to them."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = {instance.name: instance for instance in instances}
        for index, instance in enumerate(self.instances.values()):
            instance.now_ms += 10_000 + (0, 9_000, -9_000)[index]  # clocks are not equal
            add_tape(instance)
        self.changes = {name: Changes() for name in NAMES}
        self._own: dict[str, dict[str, Any]] = {}
        self.done: Counter[str] = Counter()
        """How often Rucio did what users asked for, by deed."""

    def act(self, act: Act) -> None:
        self.local(act.who, lambda instance: self.done.update({act.what: do(instance, act)}))

    def run(self, who: str, daemon: str) -> None:
        self.local(who, DAEMONS[daemon])

    def local(self, who: str, what: Callable[[Instance], None]) -> None:
        """Let something happen to a database that is none of the bridge's doing."""
        instance = self.instances[who]
        before = rows_of(instance)
        what(instance)
        self.changes[who].note(before, rows_of(instance))
        self.changes[who].note_reachable(instance)
        self._own.pop(who, None)

    def work(self, who: str) -> int:
        """The bridge publishes and applies what there is."""
        instance = self.instances[who]
        before = self._own.get(who) or own(instance)
        done = instance.work()
        self._own[who] = own(instance) if done else before
        check_own(who, before, self._own[who])
        self.changes[who].note_reachable(instance)
        return done

    def fetch(self, who: str, source: str, seed: int = 0) -> None:
        """`who` takes everything that `source` has; with a seed, some twice, in any order and grouping."""
        reader, other = self.instances[who], self.instances[source]
        if not seed:
            reader.fetch(other)
            return
        rng = random.Random(seed)
        frames = other.frames()
        frames += rng.sample(frames, len(frames) // 2)
        rng.shuffle(frames)
        while frames:
            size = rng.randint(1, 4)
            batch, frames = frames[:size], frames[size:]
            reader.bridge.receive(batch, source)
            if rng.random() < 0.3:
                self.work(who)

    def restart(self, who: str) -> None:
        """The node begins anew."""
        instance = self.instances[who]
        instance.bridge = Bridge(instance.engine, AUTHORITY, instance.bridge.me, KEYS[who].sign, verify, EXPRESSION)

    def settle(self) -> None:
        """Everybody hears everything, twice: what some rows waited for came later, and is tried again now and then."""
        before = {name: own(instance) for name, instance in self.instances.items()}
        settle(list(self.instances.values()))
        for instance in self.instances.values():
            instance.bridge.retry_parked(instance.now_ms)
        settle(list(self.instances.values()))
        for name, instance in self.instances.items():
            self._own[name] = own(instance)
            check_own(name, before[name], self._own[name])
            self.changes[name].note_reachable(instance)


def add_tape(instance: Instance) -> None:
    """A non-deterministic RSE that is lent."""
    with instance.session() as session:
        at = rse.add_rse(TAPE, deterministic=False, session=session)
        read_write = {"read": 1, "write": 1, "delete": 1}
        domains = {"lan": read_write, "wan": {**read_write, "third_party_copy_read": 1, "third_party_copy_write": 1}}
        impl = {"impl": "rucio.rse.protocols.posix.Default", "scheme": "file", "hostname": "localhost", "port": 0, "prefix": "/tape/"}
        rse.add_protocol(at, {**impl, "domains": domains}, session=session)
        rse.add_rse_attribute(at, "OpenData", True, session=session)


def dids_of(fact: Fact) -> tuple[Did, ...]:
    """The DIDs that a fact is about."""
    return (fact,) if isinstance(fact, Did) else tuple(end for end in ends_of(fact) if isinstance(end, Did))


def names_of(fact: Fact) -> set[tuple[str, ...]]:
    """Scopes, RSEs and DIDs of a fact as rows name them."""
    if isinstance(fact, (Scope, Rse)):
        return {tuple(fact[1:])}
    return {(did.scope, did.name) for did in dids_of(fact)}
