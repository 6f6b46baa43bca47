"""The table of planted faults: what is broken, and the test that must see it.

A fault replaces one function of nsync, in every module that has it by name. Add a line when you find a way to break a promise that
no line here breaks; a fault that nothing catches wants a test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from nsync.authority.rulings import EFFECTIVE, NEVER, WAITING, Ruling, Rulings
from nsync.catalogue import collections, cycles, dids, edges, identity, opendata, view
from nsync.catalogue import state as catalogue_state
from nsync.catalogue.reference import Known
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot, lwwmap, mvregister, orset, past
from nsync.namespace import keys
from nsync.namespace.keys import Attribute
from nsync.rucio_bridge import drift, inserts, parked, removal
from nsync.rucio_bridge.bridge import Bridge
from nsync.rucio_bridge.capture import Capture
from nsync.rucio_bridge.closing import Closing
from nsync.rucio_bridge.drift import Drift
from nsync.rucio_bridge.extras import Extras, place_of
from nsync.rucio_bridge.fit import Fit
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.mending import Mending
from nsync.rucio_bridge.watch import Looker
from nsync.store import recovery
from nsync.store.lines import SqlLines
from nsync.store.log import SqlLog
from nsync.store.statements import Statements

Patch = pytest.MonkeyPatch


class Fault(NamedTuple):
    """What is broken, how, and the test that must fail then."""

    name: str
    plant: Callable[[Patch], None]
    caught_by: str
    """module::test, below tests/"""


def function(original: Callable[..., Any], fake: Callable[..., Any]) -> Callable[[Patch], None]:
    """Replace a function in every module of nsync that has it."""

    def plant(patch: Patch) -> None:
        found = 0
        for module in [module for name, module in sys.modules.items() if name.startswith("nsync.")]:
            for name, value in list(vars(module).items()):
                if value is original:
                    patch.setattr(module, name, fake)
                    found += 1
        assert found, f"{original.__name__} is not there any more"

    return plant


def method(owner: Any, name: str, fake: Any) -> Callable[[Patch], None]:
    """Replace a method or constant; it must be there."""
    return lambda patch: patch.setattr(owner, name, fake)


def wrapped(owner: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Patch], None]:
    """Replace a method by what `change` makes of it."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


# ---- fakes that need more than a line


def _retracts_of_nobody(slots: Any, past: Any, silences: Any = None) -> list[Slot]:
    return [slot for slot in slots if not slot.retract]


def _grows_by_deps_alone(original: Callable[..., Any]) -> Callable[..., Any]:
    def grow(self: SqlLines, branch: int, first: int, deps: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self, "closure", lambda deps: {mark.branch: mark.seq for mark in deps})
            return original(self, branch, first, deps)

    return grow


def _effective_of_anybody(original: Callable[..., Any]) -> Callable[..., Any]:
    def ruling(self: Rulings, key: Any, slot: Slot) -> Ruling:
        found = original(self, key, slot)
        return found if self.charter.by_author(slot.dot.author) is None else Ruling(EFFECTIVE, "anybody says anything")

    return ruling


def _nothing_waits(original: Callable[..., Any]) -> Callable[..., Any]:
    def ruling(self: Rulings, key: Any, slot: Slot) -> Ruling:
        found = original(self, key, slot)
        return found._replace(standing=EFFECTIVE) if found.standing == WAITING else found

    return ruling


def _oldest_slot(original: Callable[..., Any]) -> Callable[..., Any]:
    def first(self: Statements, key: Any, author: bytes, mark: Any, newest: bool) -> Any:
        return next(self._others(key, author, 0, newest=False), None)

    return first


def _echo_stays(self: Bridge, session: Any, log: SqlLog, batch: str, now_ms: int) -> bool:
    return Materialise(session, log.state, self._rows(session), self.me.name).run(batch, now_ms)


def _applies_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def publish(self: Bridge, session: Any, now_ms: int) -> Any:
        while self._apply_one(session, now_ms, []):
            pass
        return original(self, session, now_ms)

    return publish


def _commits_between(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_next(self: SqlLog, *args: Any) -> Any:
        applied = original(self, *args)
        if applied is not None:
            self.connection.exec_driver_sql("COMMIT")
            self.connection.exec_driver_sql("BEGIN IMMEDIATE")
        return applied

    return apply_next


def _without_closes(original: Callable[..., Any]) -> Callable[..., Any]:
    def context(self: Capture, *args: Any) -> Any:
        return [s for s in original(self, *args) if not (isinstance(s.key, Attribute) and s.key.field == keys.CLOSED)]

    return context


def _counts_what_is_missing(original: Callable[..., Any]) -> Callable[..., Any]:
    def compared(self: Drift, page: Any, present: Any) -> Any:
        pairs = original(self, page, present)
        present.update(place_of(fact, self._rse_ids) for fact, (_, row) in pairs.items() if row is None)
        return pairs

    return compared


def _nothing_is_parked(original: Callable[..., Any]) -> Callable[..., Any]:
    def judged(self: Drift, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parked, "among", lambda *_, **__: set())
            return list(original(self, *arguments))

    return judged


def _oldest_hides(orders: Any, hidden: Any = cycles.hidden) -> Any:
    youngest_first = sorted(orders, key=lambda edge: orders[edge], reverse=True)
    return hidden({edge: (place,) for place, edge in enumerate(youngest_first)})


def _closes_only(reader: Reader, closing: Any, states: Any) -> list[Slot]:
    return [slot for slot in reader.maximal(closing) if slot.value is True]


def _publication_only(reader: Reader, closing: Any, states: Any) -> list[Slot]:
    return list(reader.maximal(states)) or _closes_only(reader, closing, states)


def _youngest_decides(candidates: Any) -> Any:
    found = sorted(candidates, key=lambda pair: pair[1].said.order, reverse=True)
    others = {candidate.holds for _, candidate in found}
    return ("", None) if not found else (found[0][1].holds + "".join(others - {found[0][1].holds}), found[0])


CONCURRENCY, CONFLICTS, SHARE, HISTORIES, DRIFTS, INVARIANTS = (
    f"bridge.{name}" for name in ("test_concurrency", "test_conflicts", "test_share", "test_state_machine", "test_drift", "test_invariants")
)
COLLECTIONS, OPEN_DATA, DIDS = (f"unit.{name}" for name in ("test_collections", "test_opendata", "test_dids"))

FAULTS = (
    # ---- readings
    Fault(
        "a reading looks at every statement, not at the maximal ones",
        function(mvregister.maximal, lambda slots, past: list(slots)),
        f"{CONCURRENCY}::test_the_home_reopens_what_a_guest_closed",
    ),
    Fault(
        "a statement is in the past of any later number, whoever said it",
        function(past.contains, lambda _, later, earlier: earlier.seq < later.seq),
        f"{CONCURRENCY}::test_an_attachment_that_the_close_had_not_seen_is_hidden_and_listed",
    ),
    Fault(
        "the past of a segment holds its deps and not what they had seen",
        wrapped(SqlLines, "grow", _grows_by_deps_alone),
        f"{CONCURRENCY}::test_what_the_closer_saw_through_a_third_instance_it_saw",
    ),
    Fault(
        "deps are never named",
        method(SqlLog, "_choose_deps", lambda self, author, tip: []),
        f"{CONCURRENCY}::test_a_guests_close_takes_effect_once_the_home_acknowledged_it",
    ),
    Fault(
        "nothing silences anything",
        function(orset.standing, _retracts_of_nobody),
        f"{CONCURRENCY}::test_the_homes_retract_silences_everyone",
    ),
    Fault(
        "a retract silences what it has not seen",
        function(orset.standing, lambda slots, past, silences: [] if any(s.retract for s in slots) else list(slots)),
        f"{CONCURRENCY}::test_of_an_attachment_added_and_removed_at_once_the_add_wins",
    ),
    Fault(
        "a map shows the statement with the greatest number",
        function(lwwmap.newest, lambda slots, past: max(slots, key=lambda slot: slot.dot.seq, default=None)),
        f"{CONCURRENCY}::test_of_two_values_said_at_once_the_newer_shows",
    ),
    Fault(
        "a slot is the oldest statement that counts",
        wrapped(Statements, "_first", _oldest_slot),
        f"{CONCURRENCY}::test_a_guest_takes_back_a_close_that_the_home_has_not_acknowledged",
    ),
    # ---- authority
    Fault(
        "a guest's retract silences everyone",
        method(Rulings, "silences", lambda self, key, retract, asserted: True),
        f"{CONCURRENCY}::test_a_guests_retract_silences_only_its_own",
    ),
    Fault(
        "a guest's close and publication count at once",
        wrapped(Rulings, "ruling", _nothing_waits),
        f"{CONCURRENCY}::test_a_guests_publication_takes_effect_once_the_home_acknowledged_it",
    ),
    Fault(
        "what waits for the home is never settled",
        method(Rulings, "_acknowledged", lambda self, line, dot: NEVER),
        f"{CONCURRENCY}::test_a_guests_retract_waits_for_the_home",
    ),
    Fault(
        "anybody writes any scope",
        wrapped(Rulings, "ruling", _effective_of_anybody),
        f"{CONCURRENCY}::test_a_stranger_in_a_scope_changes_nothing",
    ),
    # ---- catalogue
    Fault(
        "a close hides nothing",
        function(collections.unsealed, lambda reader, tops, seals: None),
        f"{CONCURRENCY}::test_an_attachment_that_the_close_had_not_seen_is_hidden_and_listed",
    ),
    Fault(
        "the identity is the oldest claim by its stamp",
        method(Rulings, "position", lambda self, key, slot: (0, 0, slot.order)),
        f"{INVARIANTS}::test_invariant_02_the_bytes_of_a_file_are_one_for_ever",
    ),
    Fault(
        "a later claim replaces an author's first",
        method(Statements, "_claims", lambda self, did, its, slots: [slot for slot in slots if not slot.retract]),
        f"{INVARIANTS}::test_invariant_02_a_name_that_was_removed_keeps_its_bytes",
    ),
    Fault(
        "a DOI is whose claim is the oldest",
        function(opendata.bearer, lambda reader, field, asking: min(asking, key=lambda one: one.slot.order)),
        f"{CONFLICTS}::test_of_two_dids_with_one_doi_the_one_that_its_delegate_saw_first_bears_it",
    ),
    Fault(
        "cycles are shown",
        function(cycles.hidden, lambda orders: []),
        f"{CONCURRENCY}::test_of_a_cycle_the_younger_attachment_hides_everywhere",
    ),
    Fault(
        "of a cycle the older attachment hides",
        function(cycles.hidden, _oldest_hides),
        f"{CONCURRENCY}::test_of_a_cycle_the_younger_attachment_hides_everywhere",
    ),
    Fault(
        "a changed attachment looks at no cycle",
        function(cycles.affected, lambda changed, below, above: set()),
        f"{CONCURRENCY}::test_of_a_cycle_the_younger_attachment_hides_everywhere",
    ),
    Fault(
        "types are not looked at",
        function(collections.type_conflict, lambda edge, parent, child: None),
        f"{INVARIANTS}::test_invariant_01_a_name_has_one_type",
    ),
    Fault(
        "what hangs on a DID that came is not looked at again",
        function(view._hold, lambda entry: None),
        f"{CONCURRENCY}::test_an_attachment_shows_when_its_child_arrives",
    ),
    Fault(
        "a change concerns no other attachment of its cycle",
        function(cycles.affected, lambda changed, below, above: set(changed)),
        f"{CONCURRENCY}::test_the_hidden_attachment_of_a_cycle_shows_when_the_cycle_is_gone",
    ),
    Fault(
        "a container may be mixed",
        function(collections.mixed_conflicts, lambda reader, candidates, deciding: {}),
        f"{COLLECTIONS}::test_a_container_holds_what_its_oldest_attachment_holds",
    ),
    Fault(
        "a container holds what was attached last",
        function(collections.content, _youngest_decides),
        f"{COLLECTIONS}::test_a_container_holds_what_its_oldest_attachment_holds",
    ),
    Fault(
        "what else a container holds is never looked at",
        method(edges._Attachments, "_needs_the_rest", lambda self, parent, its, found: False),
        f"{COLLECTIONS}::test_a_container_holds_the_others_once_the_oldest_are_gone",
    ),
    Fault(
        "what else a container holds is always looked at",
        method(edges._Attachments, "_needs_the_rest", lambda self, parent, its, found: True),
        f"{COLLECTIONS}::test_what_a_container_holds_is_not_read_again_when_it_grows",
    ),
    Fault(
        "a publication closes nothing",
        function(collections.seals, _closes_only),
        f"{COLLECTIONS}::test_what_is_attached_after_a_reopening_of_open_data_is_hidden",
    ),
    Fault(
        "a publication takes the place of the close",
        function(collections.seals, _publication_only),
        f"{COLLECTIONS}::test_a_publication_does_not_show_what_the_close_had_hidden",
    ),
    Fault(
        "a reopening is not looked at",
        method(Known, "late_in", lambda self, seals: ()),
        f"{COLLECTIONS}::test_after_a_reopening_of_what_is_not_open_data_all_shows",
    ),
    Fault(
        "a close looks only at what is hidden already",
        method(Known, "_is_late", lambda self, edge, seals: False),
        f"{COLLECTIONS}::test_a_publication_does_not_show_what_the_close_had_hidden",
    ),
    Fault(
        "every scope is attachable",
        function(collections.forbidding, lambda reader, tops, marks: None),
        f"{COLLECTIONS}::test_who_attaches_knowing_that_the_scope_is_not_attachable_attaches_in_vain",
    ),
    Fault(
        "a mark hides what could not know of it",
        function(collections.forbidding, lambda reader, tops, marks: next(iter(marks), None)),
        f"{COLLECTIONS}::test_who_attaches_knowing_that_the_scope_is_not_attachable_attaches_in_vain",
    ),
    Fault(
        "a mark that goes shows nothing again",
        method(view._Derivation, "_marked", lambda self: []),
        f"{COLLECTIONS}::test_what_a_mark_hid_shows_once_it_is_taken_back_or_set_anew",
    ),
    Fault(
        "a constituent does not wait for its archive",
        function(catalogue_state.other_end, lambda key: getattr(key, "parent", None) or getattr(key, "rse", None)),
        f"{COLLECTIONS}::test_a_constituent_waits_for_its_file_and_its_archive",
    ),
    Fault(
        "whoever is first in its delegate's log bears a DOI",
        function(opendata._order, lambda reader, field, slot: (reader.doi_position(str(slot.value), slot), slot.order)),
        f"{OPEN_DATA}::test_a_doi_is_its_delegates_whoever_was_first",
    ),
    Fault(
        "a DOI in small letters is another one",
        function(opendata.name, lambda field, value: (field, value)),
        f"{OPEN_DATA}::test_a_doi_is_one_name_in_upper_and_lower_case",
    ),
    Fault(
        "a name is decided among those who changed",
        function(dids._asking, lambda draft, names, known: set()),
        f"{OPEN_DATA}::test_a_doi_that_is_given_up_goes_to_the_next",
    ),
    Fault(
        "the newest of states said at once wins",
        function(opendata.state, lambda reader, did, slots: (max(reader.maximal(slots), key=lambda slot: slot.order).value, [])),
        f"{OPEN_DATA}::test_of_public_and_suspended_at_once_suspended_wins_and_it_is_told",
    ),
    Fault(
        "what a rule takes away is not told",
        method(Reader, "beaten", lambda self, rule, key, winner, tops, resolve: []),
        f"{DIDS}::test_of_values_said_at_once_the_newest_shows_and_the_other_is_told",
    ),
    Fault(
        "the events of a collection are copied",
        method(dids, "_OF_CONTENT", ()),
        f"{DIDS}::test_the_events_of_a_collection_are_never_taken_from_a_statement",
    ),
    Fault(
        "replicas of other bytes are shown",
        function(identity.other_bytes, lambda reader, replica, said, its, words, claims: []),
        f"{DIDS}::test_a_replica_is_of_what_its_instance_last_said_the_file_is",
    ),
    # ---- incarnations
    Fault(
        "what a peer has of one's own log is not looked at",
        function(recovery.heard, lambda *_: None),
        "unit.test_notices::test_ones_own_head_that_is_not_in_ones_own_log_ends_the_signing",
    ),
    # ---- capture
    Fault(
        "everything is shared",
        method(Capture, "_is_shared", lambda self, *_: True),
        f"{HISTORIES}::test_a_known_history_keeps_the_promises",
    ),
    Fault(
        "what came in is written before what users did is said",
        wrapped(Bridge, "_publish", _applies_first),
        f"{CONCURRENCY}::test_what_users_did_is_said_before_what_came_in_is_written",
    ),
    Fault(
        "what the bridge wrote stays in the outbox",
        method(Bridge, "_materialise", _echo_stays),
        f"{CONCURRENCY}::test_what_the_bridge_writes_is_not_captured",
    ),
    Fault(
        "a close is not said again after an attachment",
        wrapped(Capture, "_context", _without_closes),
        f"{CONCURRENCY}::test_what_the_home_attaches_and_closes_again_shows",
    ),
    Fault(
        "closing open data again says nothing",
        method(Capture, "_closed_again", lambda self, rows: []),
        f"{CONCURRENCY}::test_what_is_attached_to_reopened_open_data_shows_once_they_are_closed_again",
    ),
    Fault(
        "a guest cannot take back what waits",
        method(Capture, "_taken_back", lambda self, facts, rows, shown: []),
        f"{CONCURRENCY}::test_a_guest_takes_back_a_close_that_the_home_has_not_acknowledged",
    ),
    # ---- materialise
    Fault(
        "the head advances in a transaction of its own",
        wrapped(SqlLog, "apply_next", _commits_between),
        f"{CONCURRENCY}::test_a_changeset_whose_rows_fail_is_not_applied_either",
    ),
    Fault(
        "what does not fit is dropped",
        function(parked.park, lambda *_: True),
        f"{CONFLICTS}::test_a_private_scope_of_the_same_name_parks_the_whole_changeset_and_nothing_else",
    ),
    Fault(
        "a scope of the same name is taken over",
        method(Fit, "closed_off", lambda self, facts: {}),
        f"{CONFLICTS}::test_a_private_scope_of_the_same_name_parks_the_whole_changeset_and_nothing_else",
    ),
    Fault(
        "what depends on something parked is written without it",
        function(parked.batches_with, lambda session, wanted: set()),
        f"{CONFLICTS}::test_a_parked_changeset_stays_whole_when_a_part_of_it_changes",
    ),
    Fault(
        "a removed DID takes along what local users depend on",
        method(removal, "_HOLDERS", ()),
        f"{CONFLICTS}::test_a_local_rule_survives_that_its_data_are_removed",
    ),
    Fault(
        "a guest's bridge opens what the guest closed",
        method(Materialise, "_closed_by_me", lambda self, dids: set()),
        f"{CONCURRENCY}::test_what_a_guest_closed_stays_closed_at_the_guest_while_the_home_is_silent",
    ),
    Fault(
        "sizes of closed collections are left as they were",
        method(Closing, "recount", lambda self: None),
        f"{HISTORIES}::test_a_known_history_keeps_the_promises",
    ),
    Fault(
        "foreign replicas are not counted",
        function(inserts.increase, lambda *_, **__: None),
        f"{HISTORIES}::test_a_known_history_keeps_the_promises",
    ),
    Fault(
        "the judge is not told of attachments",
        method(Closing, "_have_evaluated", lambda self: None),
        f"{CONFLICTS}::test_a_local_rule_covers_what_is_attached_later",
    ),
    Fault(
        "what fits is written though something does not",
        method(Materialise, "_refuse", lambda self, reasons: None),
        "bridge.test_materialised::test_what_does_not_fit_is_parked_whole_in_whatever_part_it_comes",
    ),
    Fault(
        "a commit of Rucio's wakes nobody",
        method(Looker, "look", lambda self: False),
        "bridge.test_watch::test_a_commit_of_rucio_wakes",
    ),
    # ---- drift
    Fault(
        "a row that says something else is no drift",
        function(drift.compare, lambda entry, row: []),
        f"{DRIFTS}::test_edits_of_foreign_rows_are_found_and_mended",
    ),
    Fault(
        "rows that the catalogue does not show are not looked for",
        method(Extras, "parts", lambda self, counts: ()),
        f"{DRIFTS}::test_edits_of_foreign_rows_are_found_and_mended",
    ),
    Fault(
        "where a row is missing another one is taken for it",
        wrapped(Drift, "_compared", _counts_what_is_missing),
        f"{DRIFTS}::test_edits_of_foreign_rows_are_found_and_mended",
    ),
    Fault(
        "private rows are told",
        method(Drift, "_is_told", lambda self, fact, said, standing, is_shared: True),
        f"{DRIFTS}::test_of_private_rows_nothing_is_told_and_of_parked_ones_only_how_many",
    ),
    Fault(
        "what is parked is drift",
        wrapped(Drift, "_judged", _nothing_is_parked),
        f"{DRIFTS}::test_of_private_rows_nothing_is_told_and_of_parked_ones_only_how_many",
    ),
    Fault(
        "what this instance may say is drift",
        wrapped(Drift, "_standings", lambda original: lambda self, said: dict.fromkeys(original(self, said), drift.DRIFT)),
        f"{DRIFTS}::test_own_rows_are_never_mended_and_are_told_from_what_waits_for_the_node",
    ),
    Fault(
        "nothing waits to be published",
        method(Drift, "_is_awaited", lambda self, fact: False),
        f"{DRIFTS}::test_own_rows_are_never_mended_and_are_told_from_what_waits_for_the_node",
    ),
    Fault(
        "what this instance said and waits is drift",
        method(Drift, "_outruled", lambda self, statements: set()),
        f"{DRIFTS}::test_what_was_said_here_and_waits_or_lost_is_no_drift",
    ),
    Fault(
        "a repair removes what local users hold and made",
        method(Mending, "_held", lambda self, rows, extra: ()),
        f"{DRIFTS}::test_what_a_local_rule_holds_and_what_a_user_made_is_not_removed",
    ),
)
