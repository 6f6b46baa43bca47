"""Every reason for which something is parked: while its cause is there nothing loops, and once it is gone, as the text says, rows appear.

cms shares data that do not fit at atlas, in one changeset with a file that would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from rucio.common.types import InternalAccount, InternalScope
from rucio.core import opendata
from rucio.core.account import add_account, del_account, update_account
from rucio.core.identity import add_account_identity, add_identity, del_account_identity
from rucio.core.rse import add_rse
from rucio.db.sqla.constants import AccountType, IdentityType

from nsync.namespace import keys
from nsync.namespace.keys import Attribute, Did, Identity, Protocol, Replica, Rse, Scope
from nsync.namespace.ops import Assert, Retract
from tests.support.instances import Instance, everything, settle

PROXY = InternalAccount("nsync-cms")
DISK = Rse("cms", "DISK")
F1 = Did("cms", "f1")


class Case(NamedTuple):
    """`cause` and `way_out` are done by cms and atlas; `reason` is what atlas says in between."""

    cause: Callable[[Instance, Instance], None]
    reason: str
    way_out: Callable[[Instance, Instance], None]


def run(instance: Instance, sql: str) -> None:
    with instance.session() as session:
        session.connection().exec_driver_sql(sql)


def a_file(name: str) -> Callable[[Instance, Instance], None]:
    return lambda cms, atlas: cms.add_files("cms", [name])


LONG = Did("cms", "f" * 300)


def a_long_name(cms: Instance, atlas: Instance) -> None:
    """As a Rucio of another release says it, whose columns hold more."""
    identity = Identity(keys.FILE, 1, bytes(4))
    cms.publish(Assert(LONG, identity), Assert(Did("cms", "with-it"), identity))


def its_end(cms: Instance, atlas: Instance) -> None:
    cms.publish(Retract(LONG))


def renamed(name: str) -> Callable[[Instance, Instance], None]:
    def rename(cms: Instance, atlas: Instance) -> None:
        cms.delete_replicas("cms", [name])
        cms.add_files("cms", ["f1"])

    return rename


def private_scope(cms: Instance, atlas: Instance) -> None:
    run(atlas, "UPDATE scopes SET account = 'root' WHERE scope = 'cms'")
    cms.add_files("cms", ["f1"])


def other_content(cms: Instance, atlas: Instance) -> None:
    atlas.add_files("cms", ["f1"], 7, "00000007")
    cms.add_files("cms", ["f1"])


def bearer(**borne: object) -> Callable[[Instance, Instance], None]:
    """atlas's own DID bears what cms gives to one of its."""

    def bear(cms: Instance, atlas: Instance) -> None:
        for instance, scope in ((atlas, "atlas.private"), (cms, "cms")):
            instance.add_did(scope, "d1")
            instance.add_open_data(scope, "d1")
            with instance.session() as session:
                opendata.update_opendata_did(scope=InternalScope(scope), name="d1", session=session, **borne)

    return bear


def rse_of_that_name(cms: Instance, atlas: Instance) -> None:
    with atlas.session() as session:
        add_rse("CMS_TAPE", session=session)
    say_rse(cms, "TAPE")


def say_rse(cms: Instance, name: str) -> None:
    """A file at another RSE of cms."""
    cms.work()
    place = Rse("cms", name)
    identity = Identity(keys.FILE, 1, bytes(4))
    cms.publish(Assert(place, True), Assert(F1, identity), Assert(Replica(F1, place), "a/f1"), Assert(Did("cms", "with-it"), identity))


def protocol(impl: str, hostname: str = "cms.example.org") -> Callable[[Instance, Instance], None]:
    def say(cms: Instance, atlas: Instance) -> None:
        cms.publish(Assert(Attribute(DISK, keys.PROTOCOLS), (Protocol("root", hostname, 1094, "/data", impl, 1, 1, None),)))

    return say


def path(text: str) -> Callable[[Instance, Instance], None]:
    def say(cms: Instance, atlas: Instance) -> None:
        identity = Identity(keys.FILE, 1, bytes(4))
        cms.add_files("cms", ["f0"])
        cms.work()
        cms.publish(Assert(F1, identity), Assert(Replica(F1, DISK), text), Assert(Did("cms", "with-it"), identity))

    return say


def campaign(length: int) -> Callable[[Instance, Instance], None]:
    def say(cms: Instance, atlas: Instance) -> None:
        if cms.engine.dialect.name == "postgresql":  # as one of another release; SQLite's columns hold anything
            run(cms, "ALTER TABLE dids ALTER COLUMN campaign TYPE VARCHAR(500)")
        cms.add_files("cms", ["f1"])
        run(cms, f"UPDATE dids SET campaign = '{'x' * length}' WHERE name = 'f1'")

    return say


def account_deleted(cms: Instance, atlas: Instance) -> None:
    with atlas.session() as session:
        del_account(PROXY, session=session)
    cms.add_files("cms", ["f1"])


def account_back(cms: Instance, atlas: Instance) -> None:
    """What 'rucio account update --unban' does."""
    with atlas.session() as session:
        update_account(PROXY, "status", "ACTIVE", session=session)


def a_persons_account(cms: Instance, atlas: Instance) -> None:
    run(atlas, "UPDATE accounts SET account_type = 'USER' WHERE account = 'nsync-cms'")
    with atlas.session() as session:
        add_identity("somebody", IdentityType.X509, "a@b", session=session)
        add_account_identity("somebody", IdentityType.X509, PROXY, "a@b", session=session)
    cms.add_files("cms", ["f1"])


def nobodys_account(cms: Instance, atlas: Instance) -> None:
    with atlas.session() as session:
        del_account_identity("somebody", IdentityType.X509, PROXY, session=session)


def odd_scope(cms: Instance, atlas: Instance) -> None:
    name = "cms.that is far too long for a scope"
    identity = Identity(keys.FILE, 1, bytes(4))
    cms.publish(Assert(Scope(name), True), Assert(Did(name, "f1"), identity), Assert(Did("cms", "with-it"), identity))


CASES = {
    "a name": Case(a_file("f 1*"), "name 'f 1*' is not allowed by this Rucio's schema (policy package); its home must", renamed("f 1*")),
    "a long name": Case(a_long_name, "has 300 characters; this Rucio's schema holds 250; its home must", its_end),
    "a name that leads out": Case(a_file("a/../b"), "names a path outside of its directory; its home must rename it", renamed("a/../b")),
    "a scope": Case(
        odd_scope,
        "[nsync] scope_map = cms.that is far too long for a scope:OTHER",
        lambda cms, atlas: atlas.bridge.map_scopes({"cms.that is far too long for a scope": "far"}),
    ),
    "a private scope": Case(
        private_scope,
        "give it to account 'nsync-cms'",
        lambda cms, atlas: run(atlas, "UPDATE scopes SET account = 'nsync-cms' WHERE scope = 'cms'"),
    ),
    "a DID of other content": Case(
        other_content, "cms:f1 exists here as file of 7 bytes", lambda cms, atlas: atlas.delete_replicas("cms", ["f1"])
    ),
    "a DOI": Case(
        bearer(doi="10.5072/CMS.1"),
        "DOI 10.5072/CMS.1 is cms:d1 in the shared namespace, and belongs to atlas.private:d1 here; give atlas.private:d1 another DOI",
        lambda cms, atlas: atlas.set_open_data("atlas.private", "d1", doi="10.5072/OTHER.1"),
    ),
    "a record id": Case(
        bearer(record_id=7),
        "give atlas.private:d1 another record id",
        lambda cms, atlas: run(atlas, "UPDATE dids_opendata_record SET record_id = 8"),
    ),
    "an RSE's name": Case(
        rse_of_that_name,
        "an RSE called 'CMS_TAPE' exists here and is not cms's; rename it",
        lambda cms, atlas: run(atlas, "UPDATE rses SET rse = 'MY_TAPE' WHERE rse = 'CMS_TAPE'"),
    ),
    "a path": Case(path("../f1"), "does not lie below its RSE's prefix; its instance must mend the replica", path("a/f1")),
    "metadata": Case(
        campaign(200),
        "has 200 characters; this Rucio's column holds 50; its home must change it",
        lambda cms, atlas: run(cms, "UPDATE dids SET campaign = 'x' WHERE name = 'f1'"),
    ),
    "a deleted account": Case(account_deleted, "'rucio account update --unban nsync-cms'", account_back),
    "a person's account": Case(a_persons_account, "rucio account identity remove --type X509 --id 'somebody' nsync-cms", nobodys_account),
}


@pytest.mark.parametrize("name", CASES)
def test_what_waits_is_written_once_its_cause_is_gone_and_nothing_loops_before(either: list[Instance], name: str) -> None:
    case, (atlas, cms, _) = CASES[name], either
    case.cause(cms, atlas)
    if not cms.query("SELECT 1 FROM nsync_entry WHERE name = 'with-it'"):
        cms.add_files("cms", ["with-it"])
    settle([cms, atlas])
    assert any(case.reason in reason for reason in atlas.parked().values()), atlas.parked()
    assert not is_written(atlas)
    before = everything(atlas)
    for later_ms in (30_000, 60_000):
        atlas.bridge.retry_parked(atlas.now_ms + later_ms)
        assert everything(atlas) == before
    case.way_out(cms, atlas)
    settle([cms, atlas])
    atlas.bridge.retry_parked(atlas.now_ms)
    assert atlas.parked() == {} and is_written(atlas)
    before = everything(atlas)
    atlas.bridge.retry_parked(atlas.now_ms)
    assert atlas.work() == 0 and everything(atlas) == before


def is_written(atlas: Instance) -> bool:
    return bool(atlas.query("SELECT 1 FROM dids WHERE scope = 'cms' AND name = 'with-it'"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (protocol("evil.Module"), "only classes of rucio.rse.protocols are taken from a peer"),
        (protocol("rucio.rse.protocols.xrootd.Default", "-oProxyCommand=x"), "which is no scheme and host"),
    ],
)
def test_a_protocol_that_its_instance_mends_is_taken(
    either: list[Instance], wrong: Callable[[Instance, Instance], None], reason: str
) -> None:
    atlas, cms, _ = either
    cms.add_files("cms", ["f0"])
    settle([cms, atlas])
    wrong(cms, atlas)
    settle([cms, atlas])
    assert reason in atlas.parked()[DISK]
    before = everything(atlas)
    atlas.bridge.retry_parked(atlas.now_ms + 30_000)
    assert everything(atlas) == before
    protocol("rucio.rse.protocols.xrootd.Default")(cms, atlas)
    settle([cms, atlas])
    assert atlas.parked() == {} and ("cms.example.org",) in atlas.query("SELECT hostname FROM rse_protocols")


def test_a_suspended_account_owns_as_before(either: list[Instance]) -> None:
    """Who suspends it lets nobody act as it."""
    atlas, cms, _ = either
    with atlas.session() as session:
        update_account(PROXY, "status", "SUSPENDED", session=session)
    cms.add_files("cms", ["f1"])
    settle([cms, atlas])
    assert atlas.parked() == {}
    assert atlas.query("SELECT account FROM dids WHERE name = 'f1'") == [("nsync-cms",)]
    assert atlas.query("SELECT status FROM accounts WHERE account = 'nsync-cms'") == [("SUSPENDED",)]


def test_an_operators_account_is_taken_as_it_is(instances: list[Instance]) -> None:
    atlas, cms, _ = instances
    with atlas.session() as session:
        add_account(PROXY, AccountType.USER, "a@b", session=session)  # with no identity: nobody's
    cms.add_scope("cms")
    cms.add_files("cms", ["f1"])
    settle([cms, atlas])
    assert atlas.parked() == {} and atlas.rows() == cms.rows()


def test_an_rse_that_its_instance_gave_another_name_is_accepted_away(either: list[Instance]) -> None:
    """RSEs never leave the namespace: the old one waits on by itself."""
    atlas, cms, _ = either
    say_rse(cms, "no name")
    settle([cms, atlas])
    reason = atlas.parked()[Rse("cms", "no name")]
    assert "is not allowed by this Rucio's schema; cms must rename its RSE 'no name', and then 'nsync conflict accept" in reason
    with atlas.engine.connect() as connection:
        (batch,) = {row[0] for row in connection.exec_driver_sql("SELECT batch FROM nsync_parked")}
    atlas.bridge.accept(batch)
    atlas.bridge.retry_parked(atlas.now_ms)
    assert is_written(atlas) and {type(fact) for fact in atlas.parked()} == {Rse, Replica}
