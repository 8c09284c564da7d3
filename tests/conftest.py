"""How the tests are shared by the processes of `make test`, and what a process keeps between files."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported. Threads of two processes on two cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ENGINES = "tests/engine/"
"""One engine at a time: it takes all cores, and two of them wait for each other's threads."""
WHOLE = (
    "tests/docs/test_from_scratch.py", "tests/jax/test_decoder.py", "tests/packaging/test_wheel.py", "tests/passes/test_partition.py",
    "tests/versions/test_versions.py", "tests/vllm/test_engine_bundle.py", "tests/vllm/test_experts.py", "tests/vllm/test_steps_on_meshes.py",
    "tests/vllm/test_pooling.py",
)  # fmt: skip
"""Files whose tests share what takes long to make. Files start in their order: those of vLLM, which changes classes of transformers, are last."""

THAWING = ("engine", "vllm")
"""Folders of tests that end engines in their own process."""


class _Sharing(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """What goes to one process together: all engines, a file of WHOLE, or a single test."""
        file = nodeid.partition("::")[0]
        return ENGINES if file.startswith(ENGINES) else file if file in WHOLE else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> _Sharing | None:
    return _Sharing(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """torch's random numbers of a test are the same in whatever order and process it runs."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What is left after a file, and after the end of an engine of vLLM, is not looked at again by the garbage collector.

    vLLM collects several times whenever a model is built or an engine ends, and then has the collector look at everything again. Late in a run
    that is a walk over the caches of torch, sympy and jax, of millions of objects: it took four of five seconds of such a test.
    """
    yield
    if last := nextitem is None or nextitem.path != item.path:
        gc.collect()
    if last or item.path.parent.name in THAWING:  # gc.get_freeze_count would walk over all that is frozen
        gc.freeze()
