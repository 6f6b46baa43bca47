"""The authors of a charter by number: short names for them, between two who have the same charter.

The number is the place in the sorted list of all authors, ended incarnations included; the digest of the list tells whether
two go by the same one.
"""

from __future__ import annotations

import hashlib
from typing import Union

from nsync.authority.charter import ID_BYTES, Charter


class Roster:
    """The numbers of a charter's authors."""

    def __init__(self, charter: Charter) -> None:
        self.authors = tuple(sorted(life.author for instance in charter.instances for life in instance.incarnations))
        self.digest = hashlib.blake2b(b"".join(self.authors), digest_size=ID_BYTES, person=b"nsync roster").digest()
        self._numbers: dict[bytes, int] = {author: number for number, author in enumerate(self.authors)}

    def name(self, author: bytes) -> Union[int, bytes]:
        """The number of `author`, or itself when it is not listed."""
        return self._numbers.get(author, author)
