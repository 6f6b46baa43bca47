"""Which statements count, and where they stand in their home's log (DESIGN 5, R3.1, R3.4, R3.6, R5.3-R5.6).

The rule, whole: a statement about scope *s* with home *h* by author *w* is effective iff *w* is *h*'s; or *h*'s log holds a grant that
covers it, the grant is in the statement's past, and the statement is in the past of every revocation of the grant. What is
below a floor counts as seen by everybody from the floor on. A guest's destructive or publishing statement also waits until the home
acknowledges it.

All of it is a function of the charter, the pasts and the floors (`Lines`), never of arrival or a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Protocol

from nsync.authority.charter import AuthorId, Charter, Era, Instance, Span
from nsync.authority.verbs import REMOVE, destroys_or_publishes, place_of, verbs_for
from nsync.crdt.past import Dot, contains
from nsync.crdt.slots import Slot
from nsync.namespace.keys import Key, Replica, Rse, fact_of, scope_of
from nsync.namespace.ops import Grant

EFFECTIVE, WAITING, VOID = "effective", "waits", "void"


class Ruling(NamedTuple):
    """What a statement counts for, and why."""

    standing: str
    """EFFECTIVE, WAITING or VOID."""
    reason: str

    @property
    def effective(self) -> bool:
        """Whether it counts."""
        return self.standing == EFFECTIVE


class Given(NamedTuple):
    """A grant in a home's log, and its revocations there."""

    dot: Dot
    grant: Grant
    revocations: tuple[Dot, ...]


class Lines(Protocol):
    """What rulings ask of the logs. Dots are places on the lines that stand (log.forks)."""

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        """The first position of `author`'s log whose past holds `dot`, another author's; None if there is none yet."""
        ...

    def head(self, author: bytes) -> int:
        """The last applied seq of `author`'s log."""
        ...

    def floors(self) -> Sequence[Mapping[bytes, int]]:
        """The heads of each floor, in the order of their numbers."""
        ...

    def given(self, author: bytes) -> Sequence[Given]:
        """The grants in `author`'s log."""
        ...


Position = tuple[int, int]
"""A place in a home's line: the span, then three steps a seq: what the home says, what it sees, what a floor after it covers."""

NEVER: Position = (1 << 62, 0)
"""After everything: not acknowledged."""


class Rulings:
    """The charter and the logs, asked about statements. Make one for each state of the logs."""

    def __init__(self, charter: Charter, lines: Lines) -> None:
        self.charter = charter
        self.lines = lines
        self.past = lines
        self._spans: dict[str, tuple[Span, ...]] = {}
        self._eras: dict[str, tuple[Era, ...]] = {}
        self._says: dict[tuple[str, str], bool] = {}

    # ---- one statement

    def ruling(self, key: Key, slot: Slot) -> Ruling:
        """Whether the statement counts. It stands on its author's line: what does not is void before anybody asks."""
        instance = self.charter.by_author(slot.dot.author)
        if instance is None:
            return Ruling(VOID, "the charter names no such author")
        owner = owner_of(key)
        if owner is not None and owner != instance.name:
            return Ruling(VOID, f"only {owner} speaks for its RSEs")
        scope = scope_of(key)
        if scope is None:
            return Ruling(EFFECTIVE, "an instance speaks for its own RSEs")
        era = self._era(scope, slot.dot)
        if era is None:
            return Ruling(VOID, f"the charter delegates scope {scope} to nobody")
        home = self.eras(scope)[era].home
        if home.name == instance.name:
            return Ruling(EFFECTIVE, f"{home.name} is the home of scope {scope}")
        granted = self._granted(key, slot, scope, era, verbs_for(key, slot.retract, slot.value))
        if not granted.effective:
            return granted
        if destroys_or_publishes(key, slot.retract, slot.value) and self._acknowledged(self._line(scope, era), slot.dot) == NEVER:
            return Ruling(WAITING, f"it removes, closes or publishes: it counts once {home.name} acknowledges it")
        return granted

    def may_say(self, instance: Instance, key: Key, retract: bool, value: Any) -> bool:
        """Whether a statement would count, or wait for the home, if `instance` made it now, having seen everything that is here."""
        owner, scope = owner_of(key), scope_of(key)
        if owner is not None and owner != instance.name:
            return False
        home = self.charter.home(scope) if scope is not None else None
        if scope is None or home is None or home.name == instance.name:
            return scope is None or home is not None
        verbs = verbs_for(key, retract, value)
        if verbs and scope.startswith(home.guests.get(instance.name, ())):
            return True
        return any(not revocations for _, revocations in self._grants(instance, key, scope, len(self.eras(scope)) - 1, verbs))

    def may_count(self, author: bytes, key: Key) -> bool:
        """Whether anything that `author` says or said about `key` can count: it is or was a home, a guest, or was granted something."""
        instance, owner, scope = self.charter.by_author(author), owner_of(key), scope_of(key)
        if instance is None or owner not in (None, instance.name):
            return False
        return scope is None or self._has_a_say(instance, scope)

    def _has_a_say(self, instance: Instance, scope: str) -> bool:
        if (instance.name, scope) not in self._says:
            homes = [era.home for era in self.eras(scope)]
            named = any(home.name == instance.name or scope.startswith(home.guests.get(instance.name, ())) for home in homes)
            grants = (given.grant for span in self.line(scope) for given in self.lines.given(span.author))
            self._says[instance.name, scope] = named or any((one.to, one.scope) == (instance.name, scope) for one in grants)
        return self._says[instance.name, scope]

    def silences(self, key: Key, retract: Slot, asserted: Slot) -> bool:
        """Whether a Retract that has seen an Assert silences it: the home's do, a guest's its own instance's, or with 'remove' (R3.4)."""
        one, other = self.charter.by_author(retract.dot.author), self.charter.by_author(asserted.dot.author)
        if one is None or other is None or one.name == other.name:
            return True
        scope = scope_of(key)
        era = self._era(scope, retract.dot) if scope is not None else None
        if scope is None or era is None:
            return False
        return self.eras(scope)[era].home.name == one.name or self._granted(key, retract, scope, era, (REMOVE,)).effective

    # ---- order

    def position(self, key: Key, slot: Slot) -> tuple[object, ...]:
        """Where in the home's log a claim stands: the order by which the first one is found (R3.6)."""
        scope = scope_of(key)
        return (*self._acknowledged(self.line(scope) if scope is not None else (), slot.dot), slot.order)

    def doi_position(self, doi: str, dot: Dot) -> Position:
        """Where in the log of the instance that decides about `doi` the place `dot` is said or first seen."""
        return self._acknowledged(self.charter.doi_line(doi), dot)

    # ---- leaves

    def line(self, scope: str) -> tuple[Span, ...]:
        """The home's log of `scope`."""
        if scope not in self._spans:
            self._spans[scope] = self.charter.line(scope)
        return self._spans[scope]

    def eras(self, scope: str) -> tuple[Era, ...]:
        """The homes that `scope` has had."""
        if scope not in self._eras:
            self._eras[scope] = self.charter.eras(scope)
        return self._eras[scope]

    def _era(self, scope: str, dot: Dot) -> Optional[int]:
        """Which home judges what stands at `dot`: the first that has not handed the scope on before it."""
        for index, era in enumerate(self.eras(scope)):
            if era.until is None or (dot.author in era.until and dot.seq <= era.until[AuthorId(dot.author)].seq):
                return index
        return None

    def _line(self, scope: str, era: int) -> Sequence[Span]:
        return [span for span in self.line(scope) if span.era >= era]

    def _acknowledged(self, line: Iterable[Span], dot: Dot) -> Position:
        for index, span in enumerate(line):
            found = self._in_span(span, dot)
            if found is not None:
                return (index, found)
        return NEVER

    def _in_span(self, span: Span, dot: Dot) -> Optional[int]:
        until = span.until if span.until is not None else NEVER[0]
        if dot.author == span.author and span.after < dot.seq:
            return 3 * dot.seq if dot.seq <= until else None
        found = []
        seen = dot.seq if dot.author == span.author else self.lines.seen_from(span.author, dot)
        if seen is not None and seen <= span.after:
            seen = span.after + 1 if self.lines.head(span.author) > span.after else None  # seen before it decided: at its first word
        if seen is not None and seen <= until:
            found.append(3 * seen + 1)
        for heads in self.lines.floors():
            if dot.author != span.author and heads.get(dot.author, 0) >= dot.seq and heads.get(span.author, 0) <= until:
                found.append(3 * max(heads.get(span.author, 0), span.after) + 2)
                break
        return min(found, default=None)

    def _granted(self, key: Key, slot: Slot, scope: str, era: int, verbs: Sequence[str]) -> Ruling:
        instance, home = self.charter.by_author(slot.dot.author), self.eras(scope)[era].home
        assert instance is not None
        if verbs and verbs != (REMOVE,) and scope.startswith(home.guests.get(instance.name, ())):
            return Ruling(EFFECTIVE, f"the charter makes {instance.name} a guest of {home.name} in scope {scope}")
        if not verbs:
            return Ruling(VOID, f"only {home.name} says this of scope {scope}")
        refused = f"{home.name} has granted {instance.name} none of {', '.join(verbs)} in scope {scope}"
        for dot, revocations in self._grants(instance, key, scope, era, verbs):
            if not contains(self.lines, slot.dot, dot):
                refused = f"the grant at {home.name} {dot.seq} came later: {instance.name} had not seen it"
                continue
            unseen = [revocation for revocation in revocations if not self._seen(revocation, slot.dot)]
            if not unseen:
                return Ruling(EFFECTIVE, f"granted at {home.name} {dot.seq}")
            refused = f"the grant at {home.name} {dot.seq} was revoked at {unseen[0].seq}, which had not seen it"
        return Ruling(VOID, refused)

    def _grants(self, instance: Instance, key: Key, scope: str, era: int, verbs: Sequence[str]) -> Iterator[tuple[Dot, list[Dot]]]:
        """Where the home of that era granted `instance` what a statement does, by any of its incarnations, and where it revoked that."""
        spans = [span for span in self.line(scope) if span.era == era]
        for span in spans:
            for given in self.lines.given(span.author):
                if _covers(given.grant, instance, scope, place_of(key), verbs) and _within((span,), given.dot):
                    yield given.dot, [revocation for revocation in given.revocations if _within(spans, revocation)]

    def _seen(self, revocation: Dot, dot: Dot) -> bool:
        """Whether `dot` is in the past of a revocation, a floor below it counted as seen."""
        if contains(self.lines, revocation, dot):
            return True
        return any(
            heads.get(dot.author, 0) >= dot.seq and heads.get(revocation.author, 0) < revocation.seq for heads in self.lines.floors()
        )


def owner_of(key: Key) -> Optional[str]:
    """The one instance that may speak about `key`, for RSEs and replicas (R3.1)."""
    fact = fact_of(key)
    rse = fact.rse if isinstance(fact, Replica) else fact if isinstance(fact, Rse) else None
    return rse.instance if rse is not None else None


def _covers(grant: Grant, instance: Instance, scope: str, name: Optional[str], verbs: Sequence[str]) -> bool:
    return (
        grant.to == instance.name
        and grant.scope == scope
        and (grant.prefix == "" or (name is not None and name.startswith(grant.prefix)))
        and any(verb in grant.verbs for verb in verbs)
    )


def _within(spans: Iterable[Span], dot: Dot) -> bool:
    return any(span.author == dot.author and span.after < dot.seq and (span.until is None or dot.seq <= span.until) for span in spans)
