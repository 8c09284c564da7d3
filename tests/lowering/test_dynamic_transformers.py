"""Models of transformers exported once with a dynamic batch and length, run at other sizes, and compared with eager torch.

Every model type of transformers' MODEL_MAPPING of which a tiny model can be made by its config alone is tried. A model that torch or fxhlo
refuses to export so, with a reason, is counted; a wrong value fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import tiny_transformers
import torch
from torch import nn
from torch.export import Dim

import fxhlo
from fxhlo.runtime.core.errors import FxhloError

QUICK = ("llama", "bert")
"""A decoder, and an encoder with learned positions."""
SIZES = ((1, 9), (3, 5))
"""Batch and length of the calls; the example has 2 and 6."""
LARGEST = 3_000_000
"""Parameters of a model that counts as tiny."""
COMPARED = 190
"""At least so many of all are compared; what was refused before may not grow unseen."""


def model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


@dataclass
class Counts:
    compared: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_tiny: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{len(self.compared)} compared, {len(self.refused)} refused, {len(self.failed)} failed; {len(self.not_tiny)} types have no tiny model",
            *(f"refused: {name}: {reason}" for name, reason in self.refused.items()),
            *(f"FAILED: {name}: {reason}" for name, reason in self.failed.items()),
        ]
        return "\n".join(lines)


def tiny(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]] | None:
    """The model and its inputs; None where its config makes no tiny one."""
    try:
        with torch.device("meta"):
            large, _ = tiny_transformers.build(name)
        if sum(parameter.numel() for parameter in large.parameters()) > LARGEST:
            return None
        torch.manual_seed(0)
        model, inputs = tiny_transformers.build(name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and not parameter.any():  # a router of zeros chooses between equals
                    parameter.normal_(std=0.02)
            model(*inputs)
    except Exception:  # the library's, of a config that the small numbers do not suit
        return None
    return model, inputs


def shapes(inputs: tuple[torch.Tensor, ...]) -> tuple[dict[int, Dim], ...]:
    """The first dimension is the batch; the second, of integers, a length."""
    batch, lengths = Dim("batch", min=1, max=16), {}
    found = []
    for one in inputs:
        dims = {0: batch}
        if not one.is_floating_point():
            size = one.shape[1]
            dims[1] = lengths.setdefault(size, Dim(f"length{len(lengths)}", min=1, max=32))
        found.append(dims)
    return tuple(found)


def resized(one: torch.Tensor, batch: int, length: int, usual: int) -> torch.Tensor:
    """Other values of another size. An input whose length is not the usual one differs from it by as much as before."""
    if one.is_floating_point():
        return torch.randn(batch, *one.shape[1:])
    length += one.shape[1] - usual
    if one.max() <= 1:
        return torch.ones(batch, length, dtype=one.dtype)
    return torch.randint(3, 60, (batch, length), dtype=one.dtype)


def compare(name: str, counts: Counts) -> None:
    found = tiny(name)
    if found is None:
        counts.not_tiny.append(name)
        return
    model, inputs = found
    try:
        run = fxhlo.lower(model, inputs, dynamic_shapes=(shapes(inputs),)).compile()
        usual = next((one.shape[1] for one in inputs if not one.is_floating_point()), 0)
        calls = [tuple(resized(one, batch, length, usual) for one in inputs) for batch, length in SIZES]
        answers = [run(*call) for call in calls]
    except FxhloError as problem:
        counts.refused[name] = " ".join(str(problem).split())[:300]
        return
    for call, answer in zip(calls, answers, strict=True):
        with torch.no_grad():
            expected = model(*call)
        for given, one in zip(answer, expected, strict=True):
            torch.testing.assert_close(torch.from_dlpack(given), one, rtol=1e-4, atol=1e-4)
    counts.compared.append(name)


@pytest.mark.parametrize("name", QUICK)
def test_one_of_each_kind_at_other_sizes(name: str) -> None:
    counts = Counts()
    compare(name, counts)
    assert counts.compared == [name], str(counts)


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[Counts]:
    found = Counts()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{found}")


@pytest.mark.conformance
@pytest.mark.parametrize("name", [*model_types(), None], ids=lambda name: name or "counts")
def test_every_model_of_transformers_at_other_sizes(name: str | None, counts: Counts) -> None:
    if name is None:
        assert len(counts.compared) >= COMPARED, str(counts)
        return
    try:
        compare(name, counts)
    except Exception as problem:
        counts.failed[name] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        raise
