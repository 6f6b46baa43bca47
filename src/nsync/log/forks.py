"""Forks: which of an author's branches stand (R4.4, R4.5, R4.6).

An author who signs two histories makes its log a tree. Every branch is stored, forwarded and counts for delivery; which one counts
in the readings is told here, by a pure function of what is applied:

    the charter named where the log ended    what leads there, and nothing else; but what is below the floor in any case
    a branch leaves below the floor          void on sight; it takes nothing from the others
    one branch is left                       all of it
    several                                  up to the fork, and on to the last place that more than half of all member
                                             organisations, the forker's own not counted, had acknowledged before they saw the fork

An organisation acknowledges one line only (what it had seen of the author while that was still one line), so two branches never both
have more than half.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Optional

from nsync.authority.charter import Charter, Verify
from nsync.errors import RejectedSegment
from nsync.log.segment import Header, decode_header, header_hash

BRANCHES_MAX = 64
"""Of one author: each honest peer can have got another one before the fork was known. What is beyond waits for the charter."""

OPEN = (1 << 63) - 1
"""The end of a branch that stands as far as it goes."""


class Branch(NamedTuple):
    """A run of segments of one author, each continuing the one before."""

    id: int
    parent: Optional[int]
    """The branch that it leaves, after `first` - 1; None for one that begins the log."""
    first: int


class Mark(NamedTuple):
    """A place in a tree of branches."""

    branch: int
    seq: int


Line = tuple[Mark, ...]
"""A way from the beginning of a log: each branch and up to which seq it is followed."""

NOTHING: Line = ()


def line_to(branches: Mapping[int, Branch], mark: Mark) -> Line:
    """The way that leads to `mark`."""
    found = [mark]
    branch = branches[mark.branch]
    while branch.parent is not None:
        found.append(Mark(branch.parent, branch.first - 1))
        branch = branches[branch.parent]
    return tuple(reversed(found))


def holds(line: Line, mark: Mark) -> bool:
    """Whether `line` passes `mark`."""
    return any(mark.branch == part.branch and mark.seq <= part.seq for part in line)


def cut(line: Line, seq: int) -> Line:
    """`line` up to `seq`."""
    found = []
    for mark in line:
        found.append(Mark(mark.branch, min(mark.seq, seq)))
        if mark.seq >= seq:
            break
    return tuple(found) if seq else NOTHING


class View(NamedTuple):
    """What somebody has seen of a log."""

    line: bool
    """Whether it is one line."""
    end: Optional[Mark]
    """Where that ends; None where nothing is seen."""


def view_of(branches: Mapping[int, Branch], seen: Mapping[int, int], floor_line: Line) -> View:
    """What `seen` (branch → seq) amounts to, without what leaves the floor's line below its head."""
    left, ends = above(branches, floor_line), {mark.branch: mark.seq for mark in floor_line[:-1]}
    marks = [Mark(branch, min(seq, ends.get(branch, seq))) for branch, seq in seen.items() if branch in left]
    end = max(marks, key=lambda mark: mark.seq, default=None)
    return View(end is None or all(holds(line_to(branches, end), mark) for mark in marks), end)


def standing(
    branches: Mapping[int, Branch],
    *,
    final: Optional[Mark] = None,
    floor: Optional[Mark] = None,
    acknowledged: Collection[Mark] = (),
    members: int = 0,
) -> Line:
    """The line of an author's log that stands.

    `final`: where the charter says that it ended. `floor`: the floor's head. `acknowledged`: for each member organisation but the
    author's own, the last place that it had seen while the log was one line to it; `members` is the number of all of them.
    """
    floor_line = line_to(branches, floor) if floor is not None else NOTHING
    if final is not None:
        return line_to(branches, final) if floor is None or holds(line_to(branches, final), floor) else floor_line
    left = above(branches, floor_line)
    on_floor = {mark.branch for mark in floor_line}
    rivals = [branch for branch in left.values() if branch.parent is None or branch.id not in on_floor]
    leaves = [Mark(branch.parent, branch.first - 1) for branch in rivals if branch.parent is not None]
    one_root = sum(branch.parent is None for branch in rivals) == 1
    if one_root and not leaves:
        return _open(floor_line) if floor_line else (Mark(rivals[0].id, OPEN),)
    base = line_to(left, min(leaves, key=lambda mark: mark.seq)) if one_root else NOTHING
    lines = [line_to(left, mark) for mark in acknowledged if mark.branch in left]
    shared = [mark for mark in {mark for line in lines for mark in line} if 2 * sum(holds(line, mark) for line in lines) > members]
    best = line_to(left, max(shared, key=lambda mark: mark.seq)) if shared else NOTHING
    return max(base, best, key=lambda line: line[-1].seq if line else 0)


def _open(line: Line) -> Line:
    return (*line[:-1], Mark(line[-1].branch, OPEN))


def above(branches: Mapping[int, Branch], floor_line: Line) -> dict[int, Branch]:
    """The branches without those that leave the floor's line below its head."""
    if not floor_line:
        return dict(branches)
    end = floor_line[-1]
    found: dict[int, Branch] = {mark.branch: branches[mark.branch] for mark in floor_line}
    for branch in sorted(branches.values(), key=lambda branch: branch.first):
        after = branch.first - 1
        if branch.parent == end.branch:
            beyond = after >= end.seq
        else:
            beyond = branch.parent in found and branch.parent not in {mark.branch for mark in floor_line}
        if beyond:
            found[branch.id] = branch
    return found


class ForkProof(NamedTuple):
    """Two signed headers of one author that continue one place differently."""

    header: bytes
    signature: bytes
    other_header: bytes
    other_signature: bytes


def prove(header: bytes, signature: bytes, other_header: bytes, other_signature: bytes) -> ForkProof:
    """The proof in its one form, whichever of the two came first. Raises RejectedSegment when it proves nothing."""
    pairs = sorted([(header_hash(header), header, signature), (header_hash(other_header), other_header, other_signature)])
    one, other = decode_header(pairs[0][1]), decode_header(pairs[1][1])
    if (one.author, one.first, one.prev) != (other.author, other.first, other.prev) or pairs[0][0] == pairs[1][0]:
        raise RejectedSegment(f"two headers of {one.author.hex()[:12]} at {one.first} do not prove a fork: they do not continue one place")
    return ForkProof(pairs[0][1], pairs[0][2], pairs[1][1], pairs[1][2])


def check_proof(proof: ForkProof, charter: Charter, verify: Verify) -> Header:
    """One of the two headers of `proof`, both signatures checked. Raises RejectedSegment."""
    header = decode_header(prove(*proof).header)
    life = charter.life(header.author)
    if life is None or header.federation != charter.federation:
        raise RejectedSegment(f"fork proof: the charter names no author {header.author.hex()}")
    for raw, signature in ((proof.header, proof.signature), (proof.other_header, proof.other_signature)):
        if not verify(life.key, "segment", raw, signature):
            raise RejectedSegment(f"fork proof of {header.author.hex()[:12]} at {header.first}: a signature is not its author's")
    return header


def differences(one: Line, other: Line) -> Iterator[tuple[int, int, int]]:
    """The stretches (branch, after, until) that are on one of two lines only."""
    first, second = {mark.branch: mark.seq for mark in one}, {mark.branch: mark.seq for mark in other}
    for branch in sorted({*first, *second}):
        low, high = sorted((first.get(branch, 0), second.get(branch, 0)))
        if low < high:
            yield branch, low, high
