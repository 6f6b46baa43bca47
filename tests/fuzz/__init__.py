"""Fuzzing of the decoders that read strangers' bytes: `python -m tests.fuzz SECONDS`; a short run is in tests/unit/test_fuzz.py."""
