"""Cycles of containers (6.3): the fast ways against the obvious definition, and work bounded by the change."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.catalogue import cycles
from nsync.namespace.keys import Attachment, Did


def container(number: int) -> Did:
    return Did("s", f"c{number:05}")


def edge(parent: int, child: int) -> Attachment:
    return Attachment(container(parent), container(child))


EDGES = st.builds(edge, st.integers(0, 7), st.integers(0, 7))
GRAPHS = st.lists(EDGES, unique=True, max_size=24)


def obvious(orders: dict[Attachment, int]) -> set[Attachment]:
    """Those whose head reaches their tail through attachments with smaller keys."""
    return {e for e in orders if e.parent in reached(e.child, {o for o in orders if (orders[o], o) < (orders[e], e)})}


def reached(start: Did, edges: Collection[Attachment]) -> set[Did]:
    found, fresh = set(), {start}
    while fresh:
        found |= fresh
        fresh = {e.child for e in edges if e.parent in fresh} - found
    return found


class Read:
    """A graph that counts what is read of it."""

    def __init__(self, edges: Collection[Attachment]) -> None:
        self.edges_read = 0
        self._below: dict[Did, list[Attachment]] = {}
        self._above: dict[Did, list[Attachment]] = {}
        for one in edges:
            self._below.setdefault(one.parent, []).append(one)
            self._above.setdefault(one.child, []).append(one)

    def affected(self, *changed: Attachment) -> set[Attachment]:
        return cycles.affected(changed, self._reading(self._below), self._reading(self._above))

    def _reading(self, edges: dict[Did, list[Attachment]]) -> cycles.Read:
        def read(dids: Collection[Did]) -> list[Attachment]:
            found = [one for did in dids for one in edges.get(did, ())]
            self.edges_read += len(found)
            return found

        return read


@settings(max_examples=500, deadline=None)
@given(GRAPHS, st.randoms(use_true_random=False), st.integers(1, 30))
def test_what_hides_is_what_the_definition_says(edges: list[Attachment], rng: object, keys_max: int) -> None:
    orders = {one: rng.randint(1, keys_max) for one in edges}  # type: ignore[attr-defined]  # equal keys too: an op may make several
    assert set(cycles.hidden({one: (key,) for one, key in orders.items()})) == obvious(orders)


@settings(max_examples=500, deadline=None)
@given(GRAPHS, st.lists(EDGES, unique=True, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_change_concerns_nothing_outside_its_neighbourhood(edges: list[Attachment], changed: list[Attachment], rng: object) -> None:
    before = {one: rng.random() for one in edges}  # type: ignore[attr-defined]
    after = {one: key for one, key in before.items() if one not in changed}
    after.update({one: rng.random() for one in changed if rng.random() < 0.5})  # type: ignore[attr-defined]
    around = Read({*before, *after, *changed}).affected(*changed)
    assert obvious(before) ^ obvious(after) <= around | set(changed)
    within = {one: (key,) for one, key in after.items() if one in around}
    assert set(cycles.hidden(within)) == obvious(after) & around, "and what lies within it decides it"
    assert not (set(changed) & obvious(after)) - around


def test_the_shorter_way_bounds_the_work() -> None:
    """In a chain of 5000 containers, and in a tree of as many."""
    chain = [edge(n, n + 1) for n in range(5000)]
    tree = [edge((n - 1) // 10, n) for n in range(1, 5000)]
    for edges, changed in ((chain, chain[4990]), (chain, chain[10]), (tree, tree[-1]), (tree, tree[0])):
        graph = Read(edges)
        assert graph.affected(changed) == set()
        assert graph.edges_read < 50


def test_a_ring_of_thousands_is_opened_at_its_youngest_attachment() -> None:
    ring = [edge(n, (n + 1) % 3000) for n in range(3000)]
    orders = {one: ((n * 7919) % 3000,) for n, one in enumerate(ring)}
    assert cycles.hidden(orders) == [max(orders, key=lambda one: orders[one])]
    assert Read(ring).affected(ring[17]) == set(ring)
