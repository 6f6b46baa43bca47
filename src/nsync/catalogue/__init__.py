"""State → rows: a pure function that settles whatever a database forbids by one rule, the same everywhere (DESIGN 6)."""
