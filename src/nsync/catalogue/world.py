"""What a set of segments and votes means, computed the obvious way: the oracle that the SQL store is held against.

Every question is answered from the segments, by the text of the rules: pasts are sets of segments, lines are chains of them, and nothing is
kept between one question and the next but what was computed already. It is quadratic and more; it is for histories of some dozens
of segments, for examples and for tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Optional

from nsync.authority.charter import AuthorId, Charter, Instance
from nsync.authority.rulings import EFFECTIVE, VOID, WAITING, Ruling
from nsync.authority.verbs import REMOVE, destroys_or_publishes, place_of, verbs_for
from nsync.crdt import Dot, Slot
from nsync.log.floor import Floor, Vote, floors, place
from nsync.log.segment import NO_HASH, Header, Segment, leaf_of
from nsync.namespace.keys import Did, Key, Replica, Rse, fact_of, scope_of
from nsync.namespace.ops import Grant, Retract, Revoke, decode_op

Hash = bytes


class Node(NamedTuple):
    """A segment with its whole past."""

    hash: Hash
    header: Header
    ops: tuple[bytes, ...]
    chain: frozenset[Hash]
    """Itself and what its author said before."""
    past: frozenset[Hash]
    """What it had seen, without itself."""


class Said(NamedTuple):
    """A statement and where it stands."""

    key: Key
    slot: Slot
    node: Node


def node_of(segment: Segment, nodes: Mapping[Hash, Node]) -> Node:
    """The node of a segment; what it continues and names is among `nodes`."""
    header = segment.header
    before = nodes[header.prev] if header.prev != NO_HASH else None
    chain = before.chain if before is not None else frozenset()
    past = (before.past | chain) if before is not None else frozenset()
    for dep in header.deps:
        past |= nodes[dep.hash].past | {dep.hash}
    return Node(segment.hash, header, segment.ops, chain | {segment.hash}, past)


class World:
    """All that segments, in causal order, and votes add up to under one charter."""

    def __init__(self, charter: Charter, segments: Iterable[Segment], votes: Iterable[Vote] = ()) -> None:
        self.charter = charter
        self.nodes: dict[Hash, Node] = {}
        for segment in segments:
            self.nodes[segment.hash] = node_of(segment, self.nodes)
        self._votes = tuple(votes)

    # ---- floors, forks and lines

    @cached_property
    def floors(self) -> list[Floor]:
        """The floors whose heads are all here."""
        found: list[Floor] = []
        for floor in floors(self._votes, self.charter):
            known = all(head.hash in self.nodes for head in floor.heads)
            if not known or (found and not all(head.hash in self._chain_of(floor, head.author) for head in found[-1].heads)):
                break
            found.append(floor)
        return found

    def _chain_of(self, floor: Floor, author: bytes) -> frozenset[Hash]:
        end = place(floor, author)
        return self.nodes[end.hash].chain if end is not None else frozenset()

    def _below(self, floor: Floor, node: Node) -> bool:
        return node.hash in self._chain_of(floor, node.header.author)

    def tree(self, author: bytes) -> list[Node]:
        """The segments of `author`'s log that do not leave it below the floor."""
        nodes = [node for node in self.nodes.values() if node.header.author == author]
        end = place(self.floors[-1], author) if self.floors else None
        if end is None:
            return nodes
        return [node for node in nodes if node.hash in self.nodes[end.hash].chain or end.hash in node.chain]

    def forked(self, author: bytes) -> bool:
        """Whether `author` signed two histories above the floor."""
        return not _is_line(self.tree(author))

    def standing(self, author: bytes) -> list[Node]:
        """The segments of `author` that count in the readings, in order (R4.5)."""
        if author not in self._standing:
            self._standing[author] = sorted(self._stands(author), key=lambda node: node.header.first)
        return self._standing[author]

    @cached_property
    def _standing(self) -> dict[bytes, list[Node]]:
        return {}

    def _stands(self, author: bytes) -> list[Node]:
        life = self.charter.life(author)
        if life is None:
            return []
        tree = self.tree(author)
        end = place(self.floors[-1], author) if self.floors else None
        below = self.nodes[end.hash].chain if end is not None else frozenset()
        if life.final is not None and life.final.hash in self.nodes:
            chain = self.nodes[life.final.hash].chain
            return [node for node in self.nodes.values() if node.hash in (chain if below <= chain else below)]
        found = self._trunk(tree)
        if not _is_line(tree):
            views = [self._view(voter, tree) for voter in self.charter.voters().values() if voter.member != self._member(author)]
            found += [n for n in tree if n not in found and 2 * sum(n.hash in view for view in views) > len(self.charter.members)]
        if life.final is None:
            return found
        kept = sorted((n for n in found if n.header.last <= life.final.seq or n.hash in below), key=lambda node: node.header.first)
        whole = max((i for i, node in enumerate(kept, 1) if node.header.commit), default=0)
        return kept[:whole]

    @staticmethod
    def _trunk(tree: Sequence[Node]) -> list[Node]:
        """What is common to all branches, whole changesets only."""
        if _is_line(tree):
            return list(tree)
        common = [node for node in tree if all(node.hash in other.chain or other.hash in node.chain for other in tree)]
        ends = max((node.header.last for node in common if node.header.commit), default=0)
        return [node for node in common if node.header.last <= ends]

    def _view(self, voter: Instance, tree: Sequence[Node]) -> frozenset[Hash]:
        """What the voter had seen of the tree when it last was one line to it."""
        view: frozenset[Hash] = frozenset()
        for life in voter.incarnations:
            own = self._trunk(self.tree(life.author))
            for node in sorted(own, key=lambda node: node.header.first):
                if life.final is not None and node.header.last > life.final.seq:
                    break
                seen = [other for other in tree if other.hash in node.past]
                if _is_line(seen):
                    view = frozenset(other.hash for other in seen) or view
        return view

    def _member(self, author: bytes) -> str:
        instance = self.charter.by_author(author)
        return instance.member if instance is not None else ""

    # ---- statements and rulings

    def statements(self) -> Iterator[Said]:
        """Every statement on the lines that stand."""
        for author in sorted({node.header.author for node in self.nodes.values()}):
            for node in self.standing(author):
                yield from said_by(node)

    def said_in(self, segment: Segment) -> Iterator[Said]:
        """The statements of one segment, whether they stand or not."""
        return said_by(self.nodes[segment.hash])

    @cached_property
    def rulings(self) -> list[tuple[Said, Ruling]]:
        """Every statement on the lines that stand, with what it counts for."""
        return [(said, self.ruling(said)) for said in self.statements()]

    def ruling(self, said: Said) -> Ruling:
        """R5.3 and R5.6, by their words."""
        instance = self.charter.by_author(said.slot.dot.author)
        assert instance is not None
        fact, scope = fact_of(said.key), scope_of(said.key)
        rse = fact.rse if isinstance(fact, Replica) else fact if isinstance(fact, Rse) else None
        if rse is not None and rse.instance != instance.name:
            return Ruling(VOID, "another's RSE")
        if scope is None:
            return Ruling(EFFECTIVE, "own RSE")
        era = self._era(scope, said.slot.dot)
        if era is None:
            return Ruling(VOID, "no home")
        home = self.charter.eras(scope)[era].home
        if home.name == instance.name:
            return Ruling(EFFECTIVE, "home")
        if not self._granted(said, instance, scope, era, verbs_for(said.key, said.slot.retract, said.slot.value)):
            return Ruling(VOID, "no grant")
        waits = destroys_or_publishes(said.key, said.slot.retract, said.slot.value)
        if waits and self._first_seen(scope, said.node, era) is None:
            return Ruling(WAITING, "for the home")
        return Ruling(EFFECTIVE, "granted")

    def _era(self, scope: str, dot: Dot) -> Optional[int]:
        for index, era in enumerate(self.charter.eras(scope)):
            if era.until is None or (dot.author in era.until and dot.seq <= era.until[AuthorId(dot.author)].seq):
                return index
        return None

    def _granted(self, said: Said, instance: Instance, scope: str, era: int, verbs: Sequence[str]) -> bool:
        home = self.charter.eras(scope)[era].home
        if scope.startswith(home.guests.get(instance.name, ())) and verbs and verbs != (REMOVE,):
            return True
        line = [span for span in self.charter.line(scope) if span.era == era]
        words = [
            (node, Dot(node.header.author, node.header.first + offset), word)
            for span in line
            for node in self.standing(span.author)
            for offset, raw in enumerate(node.ops)
            if span.after < node.header.first + offset and (span.until is None or node.header.first + offset <= span.until)
            for word in decode_op(raw)
        ]
        for node, dot, grant in words:
            if not isinstance(grant, Grant) or (grant.to, grant.scope) != (instance.name, scope) or not set(verbs) & set(grant.verbs):
                continue
            name = place_of(said.key)
            if grant.prefix and (name is None or not name.startswith(grant.prefix)):
                continue
            revokers = [(n, d) for n, d, word in words if isinstance(word, Revoke) and (word.author, word.seq) == dot]
            if node.hash in said.node.past and all(self._saw(n, d, said.node) for n, d in revokers):
                return True
        return False

    def _saw(self, revoker: Node, dot: Dot, node: Node) -> bool:
        if node.hash in revoker.past:
            return True
        return any(self._below(floor, node) and floor.seq(dot.author) < dot.seq for floor in self.floors)

    def _first_seen(self, scope: str, node: Node, era: int = 0) -> Optional[tuple[int, int]]:
        return self._on_line([s for s in self.charter.line(scope) if s.era >= era], node, None)

    def _on_line(self, line: Sequence[object], node: Node, dot: Optional[Dot]) -> Optional[tuple[int, int]]:
        """The first place of a line at which `dot` is said, or `node` is seen; floors stand between two ops."""
        for index, span in enumerate(line):
            author, after, until = span.author, span.after, span.until  # type: ignore[attr-defined]
            found = []
            for own in self.standing(author):
                for seq in range(own.header.first, own.header.last + 1):
                    if seq <= after or (until is not None and seq > until):
                        continue
                    if dot == Dot(author, seq):
                        found.append(3 * seq)
                    elif node.hash in own.past:
                        found.append(3 * seq + 1)
            for floor in self.floors:
                at = floor.seq(author)
                if self._below(floor, node) and node.header.author != author and (until is None or at <= until):
                    found.append(3 * max(at, after) + 2)
            if found:
                return (index, min(found))
        return None

    # ---- what is live

    def live(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """Of each log the ops below the newest floor that compaction keeps, by seq and hash (R3.8, log.compaction)."""
        if not self.floors:
            return {}
        below = {name for head in self.floors[-1].heads for name in self._chain_of(self.floors[-1], head.author)}
        world = World(self.charter, (), self._votes)
        world.nodes = {name: node for name, node in self.nodes.items() if name in below}
        counts = {(said.key, said.slot.dot) for said, ruling in world.rulings if ruling.effective}
        first = {(did, claim.dot) for did, claims in world.claims_by_did.items() for claim in claims.values()}
        found: dict[bytes, list[tuple[int, bytes]]] = {}
        for node in sorted(world.nodes.values(), key=lambda node: node.header.first):
            said = [one for one in said_by(node)]
            for seq, raw in enumerate(node.ops, node.header.first):
                mine = [one for one in said if one.slot.dot.seq == seq]
                if not mine or not all(_superseded(one, counts, first) for one in mine):
                    found.setdefault(node.header.author, []).append((seq, leaf_of(raw)))
        return found

    # ---- slots, claims and what readings ask

    @cached_property
    def slots_by_key(self) -> dict[Key, dict[bytes, Slot]]:
        """Of each (key, author) the effective statement with the greatest seq (R3.3)."""
        found: dict[Key, dict[bytes, Slot]] = {}
        for said, ruling in self.rulings:
            if ruling.effective:
                held = found.setdefault(said.key, {}).get(said.slot.dot.author)
                if held is None or held.dot.seq < said.slot.dot.seq:
                    found[said.key][said.slot.dot.author] = said.slot
        return found

    @cached_property
    def claims_by_did(self) -> dict[Did, dict[bytes, Slot]]:
        """Each author's first effective claim (R3.6)."""
        found: dict[Did, dict[bytes, Slot]] = {}
        for said, ruling in self.rulings:
            if ruling.effective and isinstance(said.key, Did) and not said.slot.retract:
                held = found.setdefault(said.key, {}).get(said.slot.dot.author)
                if held is None or held.dot.seq > said.slot.dot.seq:
                    found[said.key][said.slot.dot.author] = said.slot
        return found

    def node_at(self, dot: Dot) -> Node:
        """The segment on its author's line that holds `dot`."""
        return next(node for node in self.standing(dot.author) if node.header.first <= dot.seq <= node.header.last)

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        """The first position of `author`'s line whose past holds `dot`."""
        seen = self.node_at(dot).hash
        return next((node.header.first for node in self.standing(author) if seen in node.past), None)

    def position(self, key: Key, slot: Slot) -> tuple[object, ...]:
        """Where in the home's log a claim stands (R3.6)."""
        scope = scope_of(key)
        found = self._on_line(self.charter.line(scope), self.node_at(slot.dot), slot.dot) if scope is not None else None
        return (*(found or (1 << 62, 0)), slot.order)

    @property
    def past(self) -> World:
        """What readings ask about pasts."""
        return self

    def doi_position(self, doi: str, dot: Dot) -> tuple[int, int]:
        """Where in the log of the instance that decides about `doi` the place `dot` is said or first seen."""
        return self._on_line(self.charter.doi_line(doi), self.node_at(dot), dot) or (1 << 62, 0)

    def silences(self, key: Key, retract: Slot, asserted: Slot) -> bool:
        """Who silences whom (R3.4)."""
        one, other = self.charter.by_author(retract.dot.author), self.charter.by_author(asserted.dot.author)
        assert one is not None and other is not None
        scope = scope_of(key)
        if one.name == other.name:
            return True
        era = self._era(scope, retract.dot) if scope is not None else None
        if scope is None or era is None:
            return False
        said = Said(key, retract, self.node_at(retract.dot))
        return self.charter.eras(scope)[era].home.name == one.name or self._granted(said, one, scope, era, (REMOVE,))


def _superseded(said: Said, counts: Collection[tuple[Key, Dot]], first: Collection[tuple[Did, Dot]]) -> bool:
    """Whether the author said something later about the key, which counts; a first claim never is."""
    dot = said.slot.dot
    later = any(key == said.key and other.author == dot.author and other.seq > dot.seq for key, other in counts)
    return later and (said.key, dot) not in first


def said_by(node: Node) -> Iterator[Said]:
    """The statements of a segment."""
    for offset, raw in enumerate(node.ops):
        dot = Dot(node.header.author, node.header.first + offset)
        for word in decode_op(raw):
            if isinstance(word, (Grant, Revoke)):
                continue
            retract = isinstance(word, Retract)
            yield Said(word.key, Slot(dot, node.header.stamp, retract, None if isinstance(word, Retract) else word.value), node)


def _is_line(nodes: Collection[Node]) -> bool:
    longest = max(nodes, key=lambda node: len(node.chain), default=None)
    return longest is None or all(node.hash in longest.chain for node in nodes)
