"""Random configs of the families that both libraries have: the answers are transformers', or the config is refused before a weight is loaded.

Each model is drawn from a family and a seed (fxhlo/tools/architectures/drawn.py), which a failure names; `python -P -m fxhlo.tools.architectures
[--eager] NAME@SEED` does it again. Most run without an engine, which tells a layer's faults; some through one, whole, in chunks, from the
prefix cache and preempted. `make conformance EVERY=12` takes every twelfth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxhlo.tools.architectures.catalog import drawn_names
from fxhlo.tools.architectures.compare import LOG, Comparison
from fxhlo.tools.architectures.drawn import FAMILIES

SEEDS = range(12)
SERVED = range(100, 102)
"""Seeds of those that an engine serves."""
GOOD = ("served", "refused")


def names(seeds: range) -> list[str]:
    every = int(os.environ.get("FXHLO_CONFORMANCE_EVERY", "1"))
    return drawn_names(FAMILIES, seeds)[::every]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.fixture(scope="module")
def in_eager_torch(folder: Path) -> Iterator[Comparison]:
    with Comparison(folder / "eager", eager=True) as comparison:
        yield comparison


@pytest.fixture(scope="module")
def by_an_engine(folder: Path) -> Iterator[Comparison]:
    with Comparison(folder / "served") as comparison:
        yield comparison


@pytest.mark.conformance
@pytest.mark.parametrize("name", names(SEEDS))
def test_a_random_model_in_eager_torch(name: str, in_eager_torch: Comparison) -> None:
    outcome = in_eager_torch.outcome(name)
    assert outcome.status in GOOD, (
        f"{outcome}\nlog: {(in_eager_torch.folder / LOG).read_text(errors='replace')[-2000:]}"
    )


@pytest.mark.conformance
@pytest.mark.parametrize("name", names(SERVED))
def test_a_random_model_is_served(name: str, by_an_engine: Comparison) -> None:
    outcome = by_an_engine.outcome(name)
    assert outcome.status in GOOD, f"{outcome}\nlog: {(by_an_engine.folder / LOG).read_text(errors='replace')[-2000:]}"
