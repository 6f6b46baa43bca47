"""The charter, asked what does not depend on any log: homes, names, and who may write where at all (DESIGN 5).

What a statement counts for depends on grants and pasts too, and is told by `authority.rulings`.
"""

from __future__ import annotations

from typing import Optional

from nsync.authority.charter import AuthorId, Charter
from nsync.namespace.keys import Key, scope_of


class Authority:
    """The charter, asked about authors and keys."""

    def __init__(self, charter: Charter) -> None:
        self.charter = charter

    def decider(self, key: Key) -> Optional[AuthorId]:
        """The author whose log settles statements about `key`; None where only one author can make any."""
        scope = scope_of(key)
        home = self.charter.home(scope) if scope is not None else None
        return home.author if home is not None else None

    def name(self, author: bytes) -> str:
        """The name of `author`'s instance."""
        return self.charter.name_of(author)
