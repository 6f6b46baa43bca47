"""Where each log ends as far as this instance has applied it: the heads that an amendment names (R5.1)."""

from __future__ import annotations

from sqlalchemy import Connection

from nsync.authority.charter import AuthorId, Charter, Place
from nsync.log.stored import BEGINNING
from nsync.store import serving
from nsync.store.lines import SqlLines


def finals(connection: Connection, charter: Charter) -> dict[AuthorId, Place]:
    """The end of the line that stands of each author of `charter`, as it is applied here; the beginning for one who said nothing."""
    lines = SqlLines(connection, charter)
    authors = [life.author for instance in charter.instances for life in instance.incarnations]
    return {author: _end(connection, lines, author) for author in authors}


def _end(connection: Connection, lines: SqlLines, author: AuthorId) -> Place:
    line = lines.line(author)
    if not line:
        return BEGINNING
    seq = min(line[-1].seq, lines.branches[line[-1].branch].applied)
    return serving.segment_before(connection, line[-1].branch, seq) or BEGINNING
