"""Each planted fault is caught by the test that the table names; without the fault that test passes, which the suite shows."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from tests.bridge.conftest import SHARED
from tests.planted.faults import FAULTS, Fault
from tests.planted.log_faults import LOG_FAULTS
from tests.support.instances import Instance


@pytest.mark.parametrize("fault", [*FAULTS, *LOG_FAULTS], ids=lambda fault: f"{fault.name} -> {fault.caught_by}")
def test_a_planted_fault_is_caught(fault: Fault, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = fault.caught_by.partition("::")
    test = getattr(importlib.import_module(f"tests.{module}"), name)
    federation = [Instance(prepared[who], tmp_path, who, shared, durable=False) for who, shared in SHARED.items()]
    given = {"federation": federation, "either": federation, "prepared": prepared, "monkeypatch": monkeypatch, "tmp_path": tmp_path}
    fault.plant(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            test(**{name: given[name] for name in inspect.signature(test).parameters})
    finally:
        for instance in federation:
            instance.close()
