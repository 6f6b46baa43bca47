"""Planted faults: for each promise a fault that breaks it, and the test that must turn red (STYLE 13)."""
