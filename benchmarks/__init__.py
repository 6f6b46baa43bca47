"""Measurements, each beside a rival or floor of the same run: `python -m benchmarks`."""
