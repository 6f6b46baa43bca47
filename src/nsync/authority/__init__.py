"""Who may say what: the charter, and which statements are effective under it (DESIGN 5)."""
