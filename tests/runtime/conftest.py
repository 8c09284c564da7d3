"""The core's tests run in an environment without torch too (docs/versions.md); what compares with torch is skipped there."""

from types import ModuleType

import pytest


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch")
