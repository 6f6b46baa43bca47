"""Instances whose changes are captured by polls in place of triggers, on real time: polls compare with what Rucio stamps."""

from __future__ import annotations

from nsync.auth.keys import verify
from nsync.rucio_bridge import audit, triggers
from nsync.rucio_bridge.bridge import Bridge, Worked
from nsync.rucio_bridge.poll import Polling
from nsync.store.database import writing
from nsync.transport.times import wall_ms
from tests.support.federation import AUTHORITY, KEYS
from tests.support.instances import EXPRESSION, Instance


def poll(instance: Instance, overlap_s: float = 60.0, audit_interval_s: float = 0) -> Instance:
    """`instance` without triggers, with a bridge that sweeps whenever it works."""
    triggers.install_beside(instance.engine, capturing=False)
    me = instance.bridge.me
    polling = Polling(0, overlap_s)
    instance.bridge = Bridge(
        instance.engine, AUTHORITY, me, KEYS[me.name].sign, verify, EXPRESSION, polling=polling, audit_interval_s=audit_interval_s
    )
    return instance


def unpoll(instance: Instance) -> None:
    """A bridge that looks for nothing by itself."""
    me = instance.bridge.me
    instance.bridge = Bridge(instance.engine, AUTHORITY, me, KEYS[me.name].sign, verify, EXPRESSION)


def work(instance: Instance, later_s: float = 0) -> list[Worked]:
    """Everything there is to do, perhaps somewhat later; returns what was done."""
    done: list[Worked] = []
    while not (worked := instance.bridge.work(wall_ms() + int(later_s * 1000))).idle:
        done.append(worked)
    return done


def ask_for_audit(instance: Instance) -> None:
    with writing(instance.engine) as connection:
        audit.ask(connection, "asked for by a test")


def work_with_audit(instance: Instance) -> list[Worked]:
    """The same, with an audit."""
    ask_for_audit(instance)
    return work(instance)


def published(done: list[Worked]) -> int:
    """How many ops."""
    return sum(worked.published for worked in done)
