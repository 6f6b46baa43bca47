"""The state of one instance in SQL: the same semantics as `catalogue.reference`, durable, beside Rucio's tables or alone."""
