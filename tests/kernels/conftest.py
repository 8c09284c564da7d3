"""The native kernels are registered with XLA before a test compiles a call of one; attention_batches.py and latent_batches.py are importable by their names."""

import sys
from pathlib import Path

import pytest

from fxhlo.runtime.core import native

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    if native.unavailable() is None:
        native.register()
