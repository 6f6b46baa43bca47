"""The log: signed, hash-chained segments and the rules by which they are let in (DESIGN 4)."""
