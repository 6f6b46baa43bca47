"""`python -m tests.planted`: plant every fault, and print which test caught it."""

from __future__ import annotations

import sys

import pytest

sys.exit(pytest.main(["-v", "--no-header", "-rN", "tests/planted", *sys.argv[1:]]))
