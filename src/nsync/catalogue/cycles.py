"""Cycles of containers: which attachments hide so that none is left (DESIGN 6.3).

A container-to-container attachment is hidden iff its head (the child) reaches its tail (the parent) through attachments with smaller
keys. So of every cycle the youngest edge hides, whatever the order of arrival. A changed attachment can only change others
that lie on a cycle with it: those below its head, if its tail is among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Callable

from nsync.namespace.keys import Attachment, Did

Order = tuple[object, ...]


def affected(changed: Iterable[Attachment], below: Callable[[Collection[Did]], Iterable[Attachment]]) -> set[Attachment]:
    """The attachments that may be on a cycle with one of `changed`; `below` gives the container attachments of containers."""
    found: set[Attachment] = set()
    for edge in changed:
        if edge in found:
            continue
        seen, frontier, edges = {edge.child}, {edge.child}, {edge}
        while frontier:
            beneath = set(below(frontier))
            edges |= beneath
            frontier = {e.child for e in beneath} - seen
            seen |= frontier
        if edge.parent in seen:
            found |= edges
    return found


def hidden(orders: Mapping[Attachment, Order]) -> list[Attachment]:
    """Those that hide among attachments that the other rules show, given the key of each."""
    return [
        edge for edge in sorted(orders) if _reaches(edge.child, edge.parent, [e for e, order in orders.items() if order < orders[edge]])
    ]


def _reaches(start: Did, goal: Did, edges: Collection[Attachment]) -> bool:
    children: dict[Did, set[Did]] = {}
    for edge in edges:
        children.setdefault(edge.parent, set()).add(edge.child)
    seen, frontier = {start}, [start]
    while frontier:
        node = frontier.pop()
        if node == goal:
            return True
        fresh = children.get(node, set()) - seen
        seen |= fresh
        frontier.extend(fresh)
    return False
