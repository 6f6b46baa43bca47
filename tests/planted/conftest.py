"""The instances of the bridge's tests."""

from tests.bridge.conftest import prepared

__all__ = ["prepared"]
