"""The native kernels are registered with XLA before a test compiles a call of one."""

import pytest

from fxhlo.runtime.core import native


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    if native.unavailable() is None:
        native.register()
