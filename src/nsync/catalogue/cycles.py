"""Cycles of containers: which attachments hide so that none is left (DESIGN 6.3).

A container-to-container attachment is hidden iff its head (the child) reaches its tail (the parent) through attachments with smaller
keys, hidden ones included. In other words: of every cycle the youngest attachment hides, whatever the order of arrival.

Why it is fast: an attachment is hidden iff, once all with smaller keys and itself are there, its two ends lie in one strongly
connected component. Components only grow as attachments are added in the order of their keys, so the moment at which the two ends
come together is found for all attachments at once by bisection: E log E steps whatever the shape, without recursion. And
a changed attachment can only change others of its own component, which lies below its head and above its tail: both
ways are walked in turn, and the one that ends first bounds the work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Callable

from nsync.namespace.keys import Attachment, Did

Order = tuple[Any, ...]
Arc = tuple[int, Any, Any]
"""(place in the order of keys, tail, head)"""
Read = Callable[[Collection[Did]], Iterable[Attachment]]


def affected(changed: Collection[Attachment], below: Read, above: Read) -> set[Attachment]:
    """The attachments that may be on a cycle with one of `changed`. `below` and `above` read those of containers to the containers below
    and above given ones."""
    down, up = _Walk({edge.child for edge in changed}, below), _Walk({edge.parent for edge in changed}, above)
    while down.frontier and up.frontier:
        (down if down.cost <= up.cost else up).step()
    reached = up if down.frontier else down
    edges = {edge for edge in reached.edges.union(changed) if edge.parent in reached.seen and edge.child in reached.seen}
    component = components((0, edge.parent, edge.child) for edge in edges)
    on_cycles = {edge for edge in edges if component[edge.parent] == component[edge.child]}
    touched = {component[edge.parent] for edge in on_cycles.intersection(changed)}
    return {edge for edge in on_cycles if component[edge.parent] in touched}


class _Walk:
    """Everything that is reached from some containers in one direction, a level at a time."""

    def __init__(self, start: set[Did], read: Read) -> None:
        self.frontier = set(start)
        self.seen = set(start)
        self.edges: set[Attachment] = set()
        self.cost = 0
        self._read = read

    def step(self) -> None:
        found = set(self._read(self.frontier))
        self.cost += len(found) + len(self.frontier)
        self.edges |= found
        self.frontier = {end for edge in found for end in (edge.parent, edge.child)} - self.seen
        self.seen |= self.frontier


def hidden(orders: Mapping[Attachment, Order]) -> list[Attachment]:
    """Those that hide among attachments that the other rules show, given the key of each; equal keys go by the names."""
    edges = sorted(orders, key=lambda edge: (orders[edge], edge))
    number = {did: n for n, did in enumerate({end for edge in edges for end in (edge.parent, edge.child)})}
    found: list[Attachment] = []
    work: list[tuple[int, int, list[Arc]]] = [
        (0, len(edges) + 1, [(place, number[edge.parent], number[edge.child]) for place, edge in enumerate(edges, 1)])
    ]
    while work:
        low, high, arcs = work.pop()  # the ends of each arc come together after `low` arcs, and by `high`
        if high - low == 1:
            found += [edges[place - 1] for place, _, _ in arcs if place == high]
            continue
        middle = (low + high) // 2
        component = components(arc for arc in arcs if arc[0] <= middle)
        sooner = [arc for arc in arcs if arc[0] <= middle and component[arc[1]] == component[arc[2]]]
        later = [(p, component.get(t, t), component.get(h, h)) for p, t, h in arcs if p > middle or component[t] != component[h]]
        work += [(low, middle, sooner)] if sooner else []
        work += [(middle, high, later)] if later else []
    return sorted(found)


def components(arcs: Iterable[Arc]) -> dict[Any, Any]:
    """For each end of an arc one node that stands for its strongly connected component (Kosaraju: two walks, no recursion)."""
    heads: dict[Any, list[Any]] = {}
    tails: dict[Any, list[Any]] = {}
    for _, tail, head in arcs:
        heads.setdefault(tail, []).append(head)
        heads.setdefault(head, [])
        tails.setdefault(head, []).append(tail)
    component: dict[Any, Any] = {}
    for root in reversed(_finished(heads)):
        if root in component:
            continue
        component[root] = root
        stack = [root]
        while stack:
            for tail in tails.get(stack.pop(), ()):
                if tail not in component:
                    component[tail] = root
                    stack.append(tail)
    return component


def _finished(heads: Mapping[Any, Collection[Any]]) -> list[Any]:
    """The nodes in the order in which a walk in depth leaves them."""
    seen: set[Any] = set()
    order: list[Any] = []
    for root in heads:
        if root in seen:
            continue
        seen.add(root)
        path = [(root, iter(heads[root]))]
        while path:
            node, rest = path[-1]
            for head in rest:
                if head not in seen:
                    seen.add(head)
                    path.append((head, iter(heads[head])))
                    break
            else:
                path.pop()
                order.append(node)
    return order
