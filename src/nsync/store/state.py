"""The state in SQL: what a changeset moves, and the catalogue after it (R3.3, DESIGN 6).

A changeset is indexed; the keys that it speaks of are *touched*, and so are those that it moves without speaking of them: guests'
statements that its home now has in its past, or whose grant it revokes, and whatever stands on a branch that begins or ceases to
count. `derive` brings the catalogue up to date with the touched keys. So the work grows with the change, not with the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Optional

from sqlalchemy import Connection, select

from nsync.authority.charter import Charter, Instance
from nsync.authority.effective import Authority
from nsync.authority.rulings import VOID, WAITING, Ruling, Rulings, owner_of
from nsync.catalogue.entries import Conflict, Entry
from nsync.catalogue.explain import Explanation, Word, entries_needed, explain
from nsync.catalogue.opendata import NAMES, Name, name_of
from nsync.catalogue.rules import Reader
from nsync.catalogue.state import About, Hanging, Node
from nsync.catalogue.view import NOBODY, VERSION, derive, parts
from nsync.crdt import Dot, Slot
from nsync.errors import ConfigError
from nsync.log.forks import Line, Mark, differences, line_to
from nsync.log.segment import GONE, Header
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Did, Fact, Key, anchor_of, fact_of, key_of, scope_of
from nsync.namespace.ops import GRANT_KIND, REVOKE_KIND, STATEMENTS_KIND, Retract, Statement, stored_op
from nsync.store import kept, schema
from nsync.store.bulk import bulk_insert
from nsync.store.changes import Changes
from nsync.store.collector import collector_paused
from nsync.store.index import Listing, numbers
from nsync.store.lines import BranchRow, SqlLines
from nsync.store.news import News
from nsync.store.shown import Changed, Shown
from nsync.store.statements import Op, Statements, read_op

_GUEST = schema.guest.c

_RULES = str(VERSION).encode()
CATALOGUE = "catalogue"
"""Under which the version of the rules is kept that the catalogue was derived by."""

UNSEEN_MAX = 4096
"""Ops of guests in a home's scopes that it may leave unacknowledged."""


class Readings(NamedTuple):
    """What the readings of many statements hang on at once: the lines of logs that can lose a part, and the floors."""

    lines: Mapping[bytes, Line]
    floors: int


class SqlState:
    """The state as one transaction sees it. Make one per transaction."""

    def __init__(self, connection: Connection, lines: SqlLines) -> None:
        self.connection = connection
        self.lines = lines
        self.authority = Authority(lines.charter)
        self.touched: set[Any] = set()
        """Keys, in their wire form."""
        self.until: Optional[dict[int, int]] = None
        """How far the logs are looked at, while the catalogue is rebuilt: branch → seq."""
        self.said = 0
        """Statements that were taken in since the catalogue was brought up to date."""
        self._taken: list[Mark] = []
        """Ops that may count for nothing, and are not judged yet."""
        self._revoked: list[Mark] = []

    @cached_property
    def shown(self) -> Shown:
        """The catalogue."""
        return Shown(self.connection)

    @cached_property
    def changes(self) -> Changes:
        """The facts whose entries changed."""
        return Changes(self.connection)

    @cached_property
    def rulings(self) -> Rulings:
        """What statements count for, as things stand."""
        return Rulings(self.lines.charter, self.lines)

    @cached_property
    def statements(self) -> Statements:
        """What was said."""
        return Statements(self.connection, self.lines, self.rulings, numbers(self.connection))

    @cached_property
    def news(self) -> News:
        """What may be all there is to know about files."""
        return News(self.statements, self.lines)

    # ---- what `derive` asks

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        return self.statements.slots(wanted)

    def about(self, dids: Collection[Did]) -> Mapping[Did, About]:
        return self.statements.about(dids)

    def entries(self, facts: Collection[Fact]) -> dict[Fact, Entry]:
        return self.shown.entries(facts)

    def conflicts(self, facts: Collection[Fact]) -> dict[Fact, list[Conflict]]:
        """The conflicts noted about each of `facts`, sorted."""
        return self.shown.conflicts(facts)

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Hanging]:
        return self.statements.hanging_on(nodes, self.news.marks, self.until)

    def late_in(self, seals: Mapping[Did, Sequence[Slot]]) -> Iterable[Attachment]:
        """What is hidden for another reason than that an end is missing has a conflict; what a seal has not seen is listed after it."""
        found: set[Attachment] = set()
        for did, its in seals.items():
            found |= self.shown.conflicts_in(did)
            if its:
                pasts = [self._seen_by(seal) for seal in its]
                seen = {branch: min(past.get(branch, 0) for past in pasts) for branch in self.lines.branches}
                found |= self.statements.unseen_in(did, seen)
        return found

    def _seen_by(self, slot: Slot) -> dict[int, int]:
        """What the op of a slot had seen of each branch, its own before it included."""
        mark = self.lines.on_line(slot.dot)
        assert mark is not None, "a slot stands on its author's line"
        own = {part.branch: part.seq for part in line_to(self.lines.branches_tree, mark)}
        return {**self.lines.past(mark), **own, mark.branch: mark.seq - 1}

    def asking(self, names: Collection[Name]) -> Iterable[Did]:
        return self.statements.asking(names)

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        return self.shown.dids_in(scopes)

    # ---- one segment

    def readings(self, everybody: bool = False) -> Readings:
        """How things stand before a change; `settle` compares. Logs of one branch that go on cannot lose a part but by an amendment."""
        charter, branches = self.lines.charter, self.lines.branches
        several = {b.author for b in branches.values() if everybody or b.parent is not None or len(self.lines.of(b.author)) > 1}
        ended = {life.author for instance in charter.instances for life in instance.incarnations if life.final is not None}
        return Readings({author: self.lines.line(author) for author in sorted(several | ended)}, len(self.lines.usable_floors))

    def see(self, branch: BranchRow, header: Header, grown: Mapping[int, tuple[int, int]]) -> None:
        """The author of `header` has more in its past: what it decides about and now sees may count, or come in another order."""
        for other, (before, now) in grown.items():
            self._touch_guests(other, before, now, branch.author)

    def take(self, branch: BranchRow, header: Header, ops: Sequence[bytes], catalogue: bool) -> None:
        """Index the ops of a segment; with `catalogue`, note what it has to be brought up to date with."""
        listing = Listing(self.statements.numbers, branch.id)
        guests, grants, revocations = [], [], []
        me = self.authority.name(branch.author)
        for seq, raw in ((seq, raw) for seq, raw in enumerate(ops, header.first) if raw[:1] != GONE):
            wire = stored_op(raw)
            if wire[0] == STATEMENTS_KIND:
                mark, op = Mark(branch.id, seq), read_op(header.stamp, wire, len(raw))
                self.said += len(op.says)
                listing.add(seq, op.says)
                sole = self.is_sole_word(op.says, me)
                if not sole:
                    deciders = self.who_decides(op.says, me)
                    guests += [(home, *mark) for home in deciders]
                    if deciders or any(self._is_nobodys(key, me) for key in op.says):
                        self._taken.append(mark)
                if catalogue:
                    self.note(mark, op, sole)
            elif wire[0] == GRANT_KIND:
                grants.append((branch.id, seq))
            elif wire[0] == REVOKE_KIND:
                revocations.append((branch.id, seq, wire[1], wire[2]))
        bulk_insert(self.connection, schema.about.name, ("node", "key", "branch", "seq"), sorted(listing.rows))
        bulk_insert(self.connection, schema.guest.name, ("home", "branch", "seq"), guests)
        bulk_insert(self.connection, schema.grant.name, ("branch", "seq"), grants)
        bulk_insert(self.connection, schema.revocation.name, ("branch", "seq", "grant_author", "grant_seq"), revocations)
        self._revoked += [Mark(branch.id, seq) for _, seq, _, _ in revocations]

    def note(self, mark: Mark, op: Op, sole: bool) -> None:
        """The catalogue has to be brought up to date with an op; `sole`: `is_sole_word`."""
        self.statements.remember(mark, op)
        if not sole or not self.news.offer(mark, op):
            self.touched.update(op.says)

    def is_sole_word(self, says: Mapping[Any, Any], me: str) -> bool:
        """Whether nobody but `me` has, or ever had, a say in anything that an op says."""
        for key in says:
            fact = key[2:] if key[0] == fields.ATTRIBUTE else key
            if fact[0] == fields.RSE:
                if fact[1] != me:
                    return False
            elif self._sole(fact[1]) != me or (fact[0] == fields.REPLICA and fact[3] != me):
                return False
            elif key[0] == fields.ATTRIBUTE and key[1] in NAMES and fact[0] == fields.DID:
                return False  # others may ask for the same name
        return True

    def _is_nobodys(self, key: Any, me: str) -> bool:
        """Whether `me` cannot say anything about `key` that counts, and nobody decides about it."""
        scope = scope_of(key)
        return (scope is not None and not self._homes(scope)) or owner_of(key_of(key)) not in (None, me)

    def _homes(self, scope: Optional[str]) -> frozenset[str]:
        """The instances that decide, or decided, about `scope`."""
        if scope not in self._homes_of:
            self._homes_of[scope] = frozenset(era.home.name for era in self.rulings.eras(scope)) if scope is not None else frozenset()
        return self._homes_of[scope]

    @cached_property
    def _homes_of(self) -> dict[Optional[str], frozenset[str]]:
        return {}

    def _sole(self, scope: str) -> Optional[str]:
        """The instance that alone has ever decided about `scope`, and still does."""
        if scope not in self._soles:
            eras = self.rulings.eras(scope)
            self._soles[scope] = eras[0].home.name if len(eras) == 1 and eras[0].until is None else None
        return self._soles[scope]

    @cached_property
    def _soles(self) -> dict[str, Optional[str]]:
        return {}

    def _namers(self, value: Any) -> set[str]:
        """The instance that decides who bears the DOI `value`."""
        home = self.lines.charter.doi_home(value) if isinstance(value, str) else None
        return {home.name} if home is not None else set()

    # ---- the catalogue after it

    def settle(self, before: Readings) -> None:
        """Bring the catalogue up to date; the facts whose entries change go into `changes`."""
        known = kept.read(self.connection, CATALOGUE)
        if known is None:
            self.is_caught_up()
        elif known != _RULES:
            raise ConfigError("the catalogue is behind the logs, or was derived by the rules of another nsync; run 'nsync bridge rebuild'")
        self.__dict__.pop("rulings", None)
        self.statements.ruled_by(self.rulings)
        for mark in self._revoked:
            self._touch_revoked(mark)
        self._touch_moved(before)
        self._revoked.clear()
        for changed in self.derive():
            self.changes.put(changed)

    def judge_by(self, charter: Charter) -> None:
        """Judge by another charter from here on (store.adoption)."""
        self.lines.judge_by(charter)
        self.authority = Authority(charter)
        self.__dict__.pop("rulings", None)
        self.statements.ruled_by(self.rulings)
        self._homes_of.clear()
        self._soles.clear()

    def who_decides(self, says: Mapping[Any, Any], me: str) -> set[str]:
        """The instances, but `me`, that decide or decided about what an op says."""
        found: set[str] = set()
        for key, value in says.items():
            found |= self._homes(scope_of(key))
            if key[0] == fields.ATTRIBUTE and name_of(key, "") is not None:
                found |= self._namers(value)
        found.discard(me)
        return found

    def void(self) -> int:
        """How many of the statements taken in since the last call count for nothing."""
        count = 0
        for mark, op in self.statements.ops(self._taken):
            for key in op.says:
                slot = self.statements.slot_of(key, mark, op)
                count += not self.lines.stands(mark) or self.rulings.ruling(key_of(key), slot).standing == VOID
        self._taken.clear()
        return count

    def is_caught_up(self) -> None:
        """Keep by which rules the catalogue is derived, since what is derived adds up only to what was derived by the same."""
        kept.write(self.connection, CATALOGUE, _RULES)

    def defer(self) -> None:
        """Leave the catalogue as it is: it is behind from here on, until `rebuild`."""
        kept.write(self.connection, CATALOGUE, b"behind")
        self.touched, self.said, self._revoked[:] = set(), 0, []
        self.__dict__.pop("news", None)

    @property
    def is_behind(self) -> bool:
        """Whether the catalogue has to be rebuilt before anything adds up to it."""
        return kept.read(self.connection, CATALOGUE) not in (None, _RULES)

    def derive(self) -> Iterator[list[Changed]]:
        """Bring the catalogue up to date with what is touched and new, as it is read: parts of the facts whose entries changed."""
        new, others = self.news.sort()
        *first, rest = parts({key for key in others.union(map(key_of, self.touched)) if anchor_of(key) not in new})
        yield from map(self._derive, first)
        yield self._derive(rest, new)
        self.touched, self.said = set(), 0
        for name in ("news", "_homes_of", "_soles"):
            self.__dict__.pop(name, None)

    @collector_paused()
    def _derive(self, touched: Collection[Key], new: Mapping[Did, About] = NOBODY) -> list[Changed]:
        return self.shown.update(derive(self, Reader(self.rulings), touched, new))

    # ---- what is touched besides

    def touch_guests_of(self, home: bytes) -> None:
        """Touch all that guests say and `home` decides about."""
        for branch in self.lines.branches:
            self._touch_guests(branch, 0, (1 << 62), home)

    def _touch_guests(self, branch: int, after: int, until: int, decider: Optional[bytes]) -> None:
        """Touch what guests say in a stretch of `branch` and `decider` decides about; everybody's, if it is None."""
        query = select(_GUEST.seq).where(_GUEST.branch == branch, _GUEST.seq > after, _GUEST.seq <= until)
        if decider is not None:
            query = query.where(_GUEST.home == self.lines.charter.name_of(decider))
        self._touch([Mark(branch, seq) for seq in self.connection.execute(query).scalars()])

    def _touch(self, marks: Collection[Mark], scope: Optional[str] = None) -> None:
        """Touch what the ops at `marks` speak of, in `scope` if one is given."""
        for _, op in self.statements.ops(marks):
            self.touched |= {key for key in op.says if scope is None or scope_of(key) == scope}

    def _touch_revoked(self, revocation: Mark) -> None:
        """What the grantee said that the revocation had not seen counts no more."""
        dot = Dot(self.lines.branches[revocation.branch].author, revocation.seq)
        seen = self.lines.past(revocation)
        home = self.lines.charter.by_author(dot.author)
        lives = home.incarnations if home is not None and self.lines.stands(revocation) else ()
        for given in (given for life in lives for given in self.lines.given(life.author)):
            grantee = self.lines.charter.by_name(given.grant.to)
            if dot in given.revocations and grantee is not None:
                for branch in (b for life in grantee.incarnations for b in self.lines.of(life.author)):
                    query = select(_GUEST.seq).where(_GUEST.branch == branch.id, _GUEST.seq > seen.get(branch.id, 0))
                    query = query.where(_GUEST.home == self.lines.charter.name_of(dot.author))
                    self._touch([Mark(branch.id, seq) for seq in self.connection.execute(query).scalars()], given.grant.scope)

    def _touch_moved(self, before: Readings) -> None:
        """What stands on stretches of logs that begin or cease to count, and what hangs on their authors' word."""
        now = self.readings()
        for author in sorted({*before.lines, *now.lines}):
            was, line = before.lines.get(author), now.lines.get(author, self.lines.line(author))
            if was is None or was == line:
                continue
            for branch, low, high in differences(was, line):
                query = select(schema.op.c.seq).where(schema.op.c.branch == branch, schema.op.c.seq > low, schema.op.c.seq <= high)
                query = query.where(schema.op.c.seq <= self.lines.branches[branch].applied)
                self._touch([Mark(branch, seq) for seq in self.connection.execute(query).scalars()])
            self.touch_guests_of(author)
        for floor, heads in enumerate(self.lines.floors()):
            if floor >= before.floors:
                for author, seq in heads.items():
                    below = self.lines.floors()[floor - 1].get(author, 0) if floor else 0
                    for part in self.lines.line(author):
                        self._touch_guests(part.branch, below, min(seq, part.seq), None)

    # ---- what the bridge asks besides

    def owes_acknowledgement(self, home: bytes) -> bool:
        """Whether guests' statements wait for `home`: destructive and publishing ones, and claims that only its log can put in order.

        Very many that do not wait are acknowledged too, so that they are settled, and not looked at again and again.
        """
        own = self.lines.of(home)
        seen = self.lines.past(Mark(own[0].id, own[0].applied)) if own else {}
        for branch in self.lines.branches.values():
            query = select(_GUEST.seq).where(
                _GUEST.home == self.lines.charter.name_of(home), _GUEST.branch == branch.id, _GUEST.seq > seen.get(branch.id, 0)
            )
            marks = [Mark(branch.id, seq) for seq in self.connection.execute(query.limit(UNSEEN_MAX)).scalars()]
            if len(marks) == UNSEEN_MAX or any(self._waits_for_order(mark, op) for mark, op in self.statements.ops(marks)):
                return True
        return False

    def _waits_for_order(self, mark: Mark, op: Op) -> bool:
        keys = [key_of(key) for key in op.says]
        if any(self.rulings.ruling(key, self.statements.slot_of(key, mark, op)).standing == WAITING for key in keys):
            return True
        claims = {fact_of(key) for key in keys if isinstance(key, Did) or name_of(key, "") is not None}
        return bool(claims) and bool(self.conflicts(claims))

    def waiting(self, author: bytes, wanted: Collection[Key]) -> dict[Key, Slot]:
        """The last statement of `author` about each of `wanted`, where it waits for its home."""
        words = self.statements.last_words(author, wanted)
        return {key: slot for key, slot in words.items() if self.rulings.ruling(key, slot).standing == WAITING}

    def sayable(self, instance: Instance, statements: Iterable[Statement]) -> list[Statement]:
        """Those of `statements` that would not be void if `instance` made them now."""
        rulings = self.rulings
        return [
            s for s in statements if rulings.may_say(instance, s.key, isinstance(s, Retract), None if isinstance(s, Retract) else s.value)
        ]

    def explain(self, key: Key) -> Explanation:
        """Every statement about `key`, what became of it, the value shown, the rule that chose it, and what would change it."""
        void = Ruling(VOID, "it stands on a branch of a forked log that does not count")
        words = [Word(found.slot, ruling or void) for found, ruling in self.statements.history(key)]
        fact = fact_of(key)
        return explain(Reader(self.rulings), key, words, self.entries(entries_needed(key)), self.conflicts([fact]).get(fact, []))
