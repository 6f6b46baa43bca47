"""The planted faults of log, store and gossip: what the simulation is there to catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median_low
from typing import Any, Optional

from nsync.authority import amendments
from nsync.authority.charter import Charter
from nsync.authority.rulings import Rulings
from nsync.clock import Stamp
from nsync.log import admission, floor, forks, lease, segment, voting
from nsync.log.floor import Vote, sign_vote
from nsync.log.stored import Head, Receipt
from nsync.store import compaction, live, log, recovery, repair
from nsync.store.intake import Intake
from nsync.store.lines import SqlLines
from nsync.store.log import SqlLog
from nsync.store.news import News
from nsync.store.notices import SqlNotices, Taken
from nsync.store.repair import Repairs
from nsync.store.state import SqlState
from nsync.store.statements import Statements
from nsync.store.voting import SqlHere
from nsync.transport import notices, peers, tls
from nsync.transport.gates import Gates
from nsync.transport.peers import Meter, PeerState
from nsync.transport.requests import Verifier
from tests.planted.faults import Fault, Patch, _nothing_waits, function, method, wrapped

NEWS, NOTICES, PEERS = "property.test_news", "unit.test_notices", "unit.test_peer_table"
LIVE, REPAIR = "property.test_live", "integration.test_repair"
TERMS = "property.test_terms"
STORIES, STORE, ORDERS = "simulation.test_stories", "simulation.test_store", "simulation.test_interleavings"
NEVER_MS = 10**12

Original = Callable[..., Any]


def _as_when_it_was_heard(original: Original) -> Original:
    first: dict[int, Any] = {}

    def offset_ms(self: Meter, now_ms: int, wall_ms: int) -> Any:
        return first.setdefault(id(self), original(self, now_ms, wall_ms))

    return offset_ms


def _commits_after(original: Original) -> Original:
    def advance(self: SqlLog, *args: Any) -> None:
        original(self, *args)
        self.connection.exec_driver_sql("COMMIT")
        self.connection.exec_driver_sql("BEGIN IMMEDIATE")

    return advance


def _all_but_the_last(original: Original) -> Original:
    def store(self: SqlLog, segments: Any) -> Receipt:
        found = original(self, segments[:-1])
        return Receipt(found.stored + 1, found.rejected)

    return store


def _known_by_place(original: Original) -> Original:
    def store(self: SqlLog, segments: Any) -> Receipt:
        have = {head.author: head.seq for head in self.stored_heads()}
        return original(self, [s for s in segments if s.header.last > have.get(s.header.author, 0)])

    return store


def _refusing_what_is_ahead(original: Original) -> Original:
    def waits_for(self: SqlLog, changeset: Any, now_ms: int) -> Any:
        reason = original(self, changeset, now_ms)
        if reason is not None and "ahead of the clock" in reason:
            self._refuse(changeset.branch, reason)
        return reason

    return waits_for


def _waiting_for_no_dep(original: Original) -> Original:
    def waits_for(self: SqlLog, changeset: Any, now_ms: int) -> Any:
        reason = original(self, changeset, now_ms)
        return reason if reason is not None and "ahead of the clock" in reason else None

    return waits_for


def _applied_heads(self: SqlLog) -> list[Head]:
    return sorted(Head(*branch.head) for branch in self.heads().values() if branch.head is not None)


def _one_head_each(original: Original) -> Original:
    return lambda self: sorted({head.author: head for head in reversed(original(self))}.values())


def _first_come(branches: Any, **_: Any) -> forks.Line:
    return (forks.Mark(min(branches), forks.OPEN),) if branches else forks.NOTHING


def _without_an_end(original: Original) -> Original:
    return lambda branches, final=None, **rest: original(branches, **rest)


def _one_is_enough(original: Original) -> Original:
    return lambda charter, document, verify: original(replace(charter, threshold=1), document, verify)


def _takes_any_stamp(original: Original) -> Original:
    return lambda segment, tip: original(segment, tip._replace(stamp=Stamp(-1, 0)))


def _home_of_today(original: Original) -> Original:
    def sole(self: SqlState, scope: str) -> Any:
        home = self.lines.charter.home(scope)
        return home.name if home is not None else None

    return sole


def _never_again(original: Original) -> Original:
    def failed(self: PeerState, now_ms: int, reason: str, rng: Any) -> PeerState:
        return original(self, now_ms + NEVER_MS, reason, rng)

    return failed


def _told_and_never_stored(patch: Patch) -> None:
    """The votes of a process stand in its memory."""
    given: dict[Any, list[Vote]] = {}

    def vote(self: SqlNotices, me: Any, floor: Any, sign: Any) -> Taken:
        given.setdefault(me.author, []).append(sign_vote(self._charter.federation, me.author, floor, sign))
        return Taken(1, 1, frozenset(), ())

    patch.setattr(SqlNotices, "vote", vote)
    votes = SqlLines.votes

    def told(self: SqlLines, number: Optional[int] = None) -> list[Vote]:
        return [*votes(self, number), *(v for found in given.values() for v in found if number in (None, v.floor.number))]

    patch.setattr(SqlLines, "votes", told)


def _answers_any(original: Original) -> Original:
    def answer(charter: Any, me: Any, ballot: Any, here: Any) -> Any:
        votes = sorted(ballot.votes, key=lambda vote: vote.floor)
        return next((floor for vote in votes if (floor := original(charter, me, ballot._replace(votes=[vote]), here)) is not None), None)

    return answer


def _by_its_own_term(original: Original) -> Original:
    return lambda floor, votes, charter, version: original(floor, votes, charter, floor.term)


def _by_members_of_today(original: Original) -> Original:
    return lambda floor, votes, charter, version: original(floor, votes, charter, charter.version)


def _forgets_its_votes(original: Original) -> Original:
    def choose(charter: Any, me: Any, ballot: Any, *rest: Any) -> Any:
        others = [vote for vote in ballot.votes if vote.author != me.author]
        newest = max((vote.floor for vote in others), key=lambda floor: floor.heads[0].seq, default=None)
        return original(charter, me, ballot._replace(votes=[vote for vote in others if vote.floor == newest]), *rest)

    return choose


def _unsigned(original: Original) -> Original:
    return lambda raw, charter, verify: original(raw, charter, lambda *_: True)


def _any_length(original: Original) -> Original:
    return lambda self, request, bytes_max, streams: original(self, request, 20 << 20, streams)


LOG_FAULTS = (
    # ---- the store
    Fault(
        "the head is committed before the catalogue",
        wrapped(SqlLog, "_advance", _commits_after),
        f"{STORIES}::test_nothing_acknowledged_is_lost_and_nothing_torn_by_crashes",
    ),
    Fault(
        "the last segment of a batch is acknowledged and not stored",
        wrapped(SqlLog, "store", _all_but_the_last),
        f"{STORIES}::test_nothing_acknowledged_is_lost_and_nothing_torn_by_crashes",
    ),
    Fault(
        "a segment is known by its place, whatever it holds",
        wrapped(SqlLog, "store", _known_by_place),
        f"{STORE}::test_the_second_branch_of_a_fork_does_not_pass_for_the_first",
    ),
    Fault(
        "only what is applied is passed on",
        method(SqlLog, "stored_heads", _applied_heads),
        f"{STORIES}::test_time_releases_what_the_clock_guard_held",
    ),
    Fault(
        "a restored instance signs on",
        method(SqlLog, "read_only", lambda self, author: None),
        f"{STORIES}::test_a_restored_instance_signs_nothing_more_once_it_hears_what_it_lost",
    ),
    Fault(
        "nobody compares their own log with what others have of it",
        function(recovery.heard, lambda connection, lines, author, theirs: None),
        f"{STORIES}::test_a_restored_instance_signs_nothing_more_once_it_hears_what_it_lost",
    ),
    Fault(
        "what a guest takes back is gone at once",
        wrapped(Rulings, "ruling", _nothing_waits),
        f"{ORDERS}::test_what_a_guest_takes_back_stays_taken_back_in_every_order",
    ),
    # ---- the catalogue of new files
    Fault(
        "a file is new whatever else is said about it",
        method(Statements, "listed_times", lambda self, counts: {place.node for place in counts}),
        f"{NEWS}::test_a_file_that_was_attached_before_it_came_is_shown_there",
    ),
    Fault(
        "new files are judged by who is at home now",
        wrapped(SqlState, "_sole", _home_of_today),
        f"{NEWS}::test_a_stranger_makes_no_files_also_where_it_will_be_at_home",
    ),
    Fault(
        "new files count on every branch",
        method(SqlLines, "stands", lambda self, mark: True),
        f"{NEWS}::test_a_file_on_a_branch_that_does_not_count",
    ),
    Fault(
        "no files are new",
        method(News, "offer", lambda self, mark, op: False),
        f"{NEWS}::test_a_new_file_of_its_home_is_recognised",
    ),
    # ---- admission and delivery
    Fault(
        "signatures are not looked at",
        function(segment.check_signature, lambda *_: None),
        f"{STORIES}::test_a_hostile_instance_changes_nothing_for_the_others",
    ),
    Fault(
        "an author may stamp before what it said before",
        function(admission.admit, _takes_any_stamp(admission.admit)),
        f"{STORIES}::test_a_hostile_instance_changes_nothing_for_the_others",
    ),
    Fault(
        "deps are not checked",
        function(admission.check_deps, lambda *_: None),
        f"{STORIES}::test_a_hostile_instance_changes_nothing_for_the_others",
    ),
    Fault(
        "nothing waits for its deps",
        wrapped(SqlLog, "_waits_for", _waiting_for_no_dep),
        f"{STORIES}::test_cut_links_heal",
    ),
    Fault(
        "an author does not name what it has seen",
        method(SqlLog, "_choose_deps", lambda self, author, tip: []),
        f"{STORIES}::test_segments_arrive_in_any_order_and_often",
    ),
    # ---- forks and rights
    Fault(
        "one branch of a fork is passed on",
        wrapped(SqlLog, "stored_heads", _one_head_each),
        f"{STORIES}::test_honest_instances_agree_beside_a_fork",
    ),
    Fault(
        "of a fork the branch that came first stands",
        function(forks.standing, _first_come),
        f"{STORIES}::test_honest_instances_agree_beside_a_fork",
    ),
    Fault(
        "what was granted once is granted for ever",
        method(Rulings, "_seen", lambda self, revocation, dot: True),
        f"{STORIES}::test_segments_arrive_in_any_order_and_often",
    ),
    Fault(
        "a log that the charter ended goes on",
        function(forks.standing, _without_an_end(forks.standing)),
        f"{STORIES}::test_an_instance_goes_on_as_its_next_incarnation",
    ),
    # ---- clocks
    Fault(
        "what is stamped ahead is refused, not held",
        wrapped(SqlLog, "_waits_for", _refusing_what_is_ahead),
        f"{STORIES}::test_time_releases_what_the_clock_guard_held",
    ),
    Fault(
        "what is stamped ahead is applied",
        method(log, "AHEAD_MS_MAX", NEVER_MS),
        f"{STORIES}::test_time_releases_what_the_clock_guard_held",
    ),
    # ---- notices and votes
    Fault(
        "a vote is told before it is stored",
        _told_and_never_stored,
        f"{STORIES}::test_floors_are_decided_beside_faults_and_change_nothing_but_what_they_settle",
    ),
    Fault(
        "of two proposals one is voted for",
        function(voting._answer, _answers_any(voting._answer)),
        f"{NOTICES}::test_of_two_proposals_none_gets_a_vote",
    ),
    Fault(
        "a member votes again",
        function(voting.choose, _forgets_its_votes(voting.choose)),
        f"{NOTICES}::test_a_vote_is_given_once_whatever_is_proposed_after_it",
    ),
    Fault(
        "a floor is decided by its own term alone",
        function(floor.is_carried, _by_its_own_term(floor.is_carried)),
        f"{TERMS}::test_members_who_come_all_at_once_take_no_floor_back",
    ),
    Fault(
        "a floor is decided by the members of today",
        function(floor.is_carried, _by_members_of_today(floor.is_carried)),
        f"{TERMS}::test_what_is_decided_stays",
    ),
    Fault(
        "old votes count after an amendment says that they do not",
        method(Charter, "revoted", lambda self, number: 1),
        f"{TERMS}::test_votes_of_before_count_no_more_after_an_amendment_says_so",
    ),
    Fault(
        "an organisation that has left is waited for",
        method(Charter, "electors", Charter.voters),
        f"{TERMS}::test_who_has_retired_is_missed_by_nobody_once_a_floor_of_the_new_term_is_there",
    ),
    Fault(
        "a guest frees by a floor what a revocation made void",
        method(SqlHere, "_frees_something", lambda self, heads, below: False),
        f"{NOTICES}::test_a_guest_who_proposes_gives_no_effect_to_what_it_said_after_its_right_had_ended",
    ),
    Fault(
        "a floor may leave out what its heads have seen",
        method(SqlHere, "_is_closed", lambda self, marks, below: True),
        f"{NOTICES}::test_a_head_that_leaves_out_what_it_has_seen_gets_no_vote",
    ),
    Fault(
        "a signed head is believed without its signature",
        function(lease.decode_head, _unsigned(lease.decode_head)),
        f"{STORIES}::test_who_votes_twice_and_who_lies_about_heads_moves_nobody",
    ),
    # ---- below a floor
    Fault(
        "what lies below one floor stays live at the next",
        method(live._Log, "_dead_below", lambda self: {}),
        f"{LIVE}::test_a_later_floor_kills_more_in_older_blocks",
    ),
    Fault(
        "the digest of a block is kept when an op of it goes",
        function(compaction.forget_blocks, lambda *_: None),
        f"{LIVE}::test_a_later_floor_kills_more_in_older_blocks",
    ),
    Fault(
        "a first claim goes like anything else",
        method(Statements, "_claims_first", lambda *_: False),
        f"{LIVE}::test_a_later_floor_kills_more_in_older_blocks",
    ),
    Fault(
        "an op is put back whatever its hash",
        function(repair._check, lambda *_: True),
        f"{REPAIR}::test_an_op_that_was_made_up_is_refused",
    ),
    Fault(
        "what a peer says is gone below a floor is gone",
        method(Repairs, "damage", lambda self: None),
        f"{STORIES}::test_what_is_said_to_be_gone_is_believed_by_nobody_and_comes_back",
    ),
    Fault(
        "what a peer says is gone above the floors is gone",
        method(Intake, "_check_gone", lambda self, segment: None),
        f"{STORIES}::test_what_is_said_to_be_gone_is_believed_by_nobody_and_comes_back",
    ),
    Fault(
        "a grant that is put back gives nothing back",
        method(SqlState, "touch_guests_of", lambda *_: None),
        f"{REPAIR}::test_a_grant_that_was_missing_gives_back_what_hangs_on_it",
    ),
    # ---- gossip
    Fault(
        "one of two peers keeps an instance from signing",
        function(peers.median_high, median_low),
        f"{PEERS}::test_half_of_the_peers_keep_nobody_from_signing",
    ),
    Fault(
        "a clock that was put right stays wrong until the peers are asked again",
        wrapped(Meter, "offset_ms", _as_when_it_was_heard),
        f"{PEERS}::test_when_the_clock_here_is_put_right_it_is_right_at_once",
    ),
    Fault(
        "a clock that jumped makes a pause of days",
        method(peers, "BACKOFF_MS_MAX", NEVER_MS),
        f"{PEERS}::test_no_pause_outlasts_a_clock_that_jumped",
    ),
    Fault(
        "an amendment counts when one member has signed",
        function(amendments._check_signed, _one_is_enough(amendments._check_signed)),
        "unit.test_proposals::test_an_amendment_counts_from_the_signature_of_the_threshold_on",
    ),
    Fault(
        "a peer that failed once is not tried again",
        wrapped(PeerState, "failed", _never_again),
        f"{STORIES}::test_cut_links_heal",
    ),
    # ---- the transport
    Fault(
        "any key passes for a peer's",
        function(tls.is_pinned, lambda certificate, pins: True),
        "integration.test_tls::test_another_key_gets_no_request",
    ),
    Fault(
        "notices are charged to nobody",
        function(notices.signatures, lambda notice: 0),
        "integration.test_limits::test_notices_are_charged_before_their_signatures_are_checked",
    ),
    Fault(
        "a nonce is not remembered",
        method(Verifier, "_once", lambda self, name, nonce, now_ms: None),
        "integration.test_limits::test_a_request_that_is_sent_twice_is_answered_once",
    ),
    Fault(
        "a body may have any length",
        wrapped(Gates, "passed", _any_length),
        "integration.test_limits::test_a_body_has_its_limit_also_when_it_does_not_say_its_length",
    ),
)
