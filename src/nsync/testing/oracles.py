"""What must hold once the faults are over: the honest instances agree, and what they agree on is right.

agree        every row of every shared table is the same
right        catalogue and conflicts are those of the reference fed with the same segments, and the model finds no fault
kept         whatever any of them acknowledged, all of them have
released     nothing of an honest author waits any more
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

from nsync.catalogue.reference import Reference
from nsync.log.segment import Segment, name_of
from nsync.namespace.keys import Fact
from nsync.testing import model
from nsync.testing.host import Host
from nsync.testing.ledger import Ledger, hold
from nsync.testing.model import Model
from nsync.testing.peer import Peer

DIFFERENCES_SHOWN = 3


def check_agreement(hosts: Sequence[Host]) -> None:
    """Raises Broken unless all hold the same."""
    first, *others = hosts
    mine = first.peer.tables()
    for other in others:
        for table, rows in other.peer.tables().items():
            only = [sorted(map(repr, set(a) - set(b)))[:DIFFERENCES_SHOWN] for a, b in ((mine[table], rows), (rows, mine[table]))]
            hold(rows == mine[table], f"{table} differs: only {first.name} has {only[0]}; only {other.name} has {only[1]}")


def check_catalogue(name: str, peer: Peer, whole: Callable[[Segment], Segment] = lambda segment: segment) -> None:
    """Raises Broken unless what `peer` shows follows from the segments that it has applied; `whole` gives what it let go of them."""
    segments = sorted(map(whole, peer.applied_segments()), key=lambda s: (s.header.stamp, s.header.author))  # a causal order
    shown, conflicts = peer.catalogue()
    reference = Reference(peer.authority.charter, peer.votes())
    for segment in segments:
        reference.apply(segment)
    catalogue, clashes = reference.recomputed()
    _compare(f"the catalogue of {name}", shown, catalogue)
    _compare(f"the conflicts of {name}", conflicts, {fact: sorted(found) for fact, found in clashes.items()})
    model.check(Model(reference.world), shown, conflicts)


def check_kept(ledger: Ledger, hosts: Sequence[Host]) -> None:
    """Raises Broken unless every one of `hosts` has what any of them acknowledged."""
    acknowledged = {hash_: host.name for host in hosts for hash_ in ledger.acknowledged[host.name]}
    for host in hosts:
        lost = sorted(set(acknowledged) - {row.hash for row in host.peer.rows()})
        for hash_ in lost[:1]:
            header = ledger.headers[hash_]
            hold(False, f"{acknowledged[hash_]} had {name_of(header.author, header.first, header.last)}, and {host.name} never got it")


def check_released(ledger: Ledger, hosts: Sequence[Host]) -> None:
    """Raises Broken while anything of one of `hosts` waits at another, unless for what only the hostile or the departed have."""
    authors: dict[bytes, str] = {host.me.author: host.name for host in hosts}
    for host in hosts:
        stored = {row.hash for row in host.peer.rows()}
        for row in host.peer.rows():
            if row.author in authors and not row.is_applied:
                what = f"{name_of(row.author, row.first, row.last)} of {authors[row.author]}"
                hold(not ledger.past(row.hash) <= stored, f"{what} is not applied at {host.name}, which has all that it names")


def check_silence(ledger: Ledger, hosts: Sequence[Host]) -> None:
    """Raises Broken if one of `hosts` would sign on, though it got back from others what it had signed before a restore."""
    for host in hosts:
        silent = host.peer.read_only() is not None
        hold(silent or not ledger.got_back(host.name, host.peer), f"{host.name} knows that its database is a restored one, and signs on")


def check_voice(ledger: Ledger, hosts: Sequence[Host]) -> None:
    """Raises Broken if one of `hosts` was made to sign nothing more, though its database was never restored nor its log ended."""
    for host in hosts:
        reason = host.peer.read_only()
        hold(reason is None or host.restored or host.members.charter.version > 1, f"{host.name} signs nothing more: {reason}")


def _compare(what: str, found: Mapping[Fact, object], wanted: Mapping[Fact, object]) -> None:
    for key in sorted({*found, *wanted}, key=str):
        hold(found.get(key) == wanted.get(key), f"{what}: {key} is {found.get(key)}, and the reference says {wanted.get(key)}")
