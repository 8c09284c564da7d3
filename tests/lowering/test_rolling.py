"""A loop over stacked weights computes what the layers written out compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fxhlo
from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.rolling import rolled
from fxhlo.tools.report.ideal import ideal


class Layer(nn.Module):
    """Ops enough for a function of its own, with a residual and something that all layers take."""

    def __init__(self, width: int, slope: float, counts: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(width))
        self.slope, self.counts = slope, counts

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.leaky_relu(self.first(self.norm(x)) * scale, self.slope)
        if self.counts:
            self.seen.add_(hidden.sum())
        return x + self.second(hidden) + self.seen


class Model(nn.Module):
    """Layers in turn; with `counts`, each keeps a state that it updates."""

    def __init__(self, slopes: list[float], counts: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(8, slope, counts) for slope in slopes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean()
        for layer in self.layers:
            x = layer(x, scale)
        return x * 2


def lowered(model: nn.Module) -> fxhlo.lowering.module.HloModule:
    return fxhlo.lower(model.eval(), (torch.randn(3, 8),))


@pytest.mark.parametrize("layers", [2, 5])
def test_a_loop_gives_what_the_layers_give(layers: int) -> None:
    model = Model([0.1] * layers)
    module = lowered(model)
    loop = rolled(module)
    assert module.text.count("call @Layer") == layers and "stablehlo.while" not in module.text
    assert loop.module.text.count("call @Layer") == 1 and loop.module.text.count("stablehlo.while") == 1
    assert all(len(names) == layers for names in loop.stacked.values()) and len(loop.stacked) == 7
    x = torch.randn(3, 8)
    (expected,), (found,) = module.compile()(x), loop.module.compile()(x)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found), model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_layers_state_is_updated_in_the_stack() -> None:
    module = lowered(Model([0.1] * 4, counts=True))
    loop = rolled(module)
    (state,) = (argument for argument in loop.module.signature.arguments if argument.alias is not None)
    assert state.shape == (4, 8) and loop.module.signature.results[state.alias or 0].shape == (4, 8)
    written, runs = module.compile(), loop.module.compile()
    for _ in range(3):
        x = torch.randn(3, 8)
        (expected,), (found,) = written(x), runs(x)
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)
    for index, name in enumerate(loop.stacked[state.name]):
        np.testing.assert_allclose(
            np.asarray(runs.bound[state.name])[index], np.asarray(written.bound[name]), rtol=1e-5
        )


def test_only_layers_of_one_kind_are_rolled() -> None:
    """The longest chain of equal layers that follow each other; the others stay calls, or are written out."""
    model = Model([0.1, 0.2] * 3)
    module = lowered(model)
    loop = rolled(module)
    assert loop.stacked == {} and loop.module is module


def test_a_model_without_repeated_layers_stays() -> None:
    module = lowered(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    assert rolled(module).module is module


@pytest.mark.parametrize("outside", ["state", "input"])
def test_layers_whose_state_or_input_is_not_theirs_alone_stay(outside: str) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(8, 0.1, False) for _ in range(3))

        def forward(self, x: torch.Tensor, one: torch.Tensor, two: torch.Tensor, three: torch.Tensor) -> torch.Tensor:
            first = x
            for layer, scale in zip(self.layers, (one, two, three), strict=True):
                x = layer(x, scale if outside == "input" else one)
            if outside == "state":
                for layer in self.layers:
                    layer.seen.copy_(first.mean(0))
            return x

    module = fxhlo.lower(Apart().eval(), (torch.randn(3, 8), *(torch.randn(16) for _ in range(3))))
    assert module.text.count("call @Layer") == 3
    assert rolled(module).stacked == {}


def test_a_loop_counts_as_its_layers_in_a_report() -> None:
    """How often composites run, and the least that a run must read and multiply."""

    class Residual(Layer):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            hidden = torch.ops.fxhlo.linear(self.norm(x) * scale, self.first.weight, self.first.bias)
            return x + torch.ops.fxhlo.linear(hidden.relu(), self.second.weight, self.second.bias)

    register_torch_ops()
    model = Model([0.1] * 5)
    model.layers = nn.ModuleList(Residual(8, 0.1, False) for _ in range(5))
    module = lowered(model)
    loop = rolled(module).module
    written, found = ([one.count for one in each.legalized().decisions] for each in (module, loop))
    assert found == written == [5, 5], "a layer has two products"
    costs, turns = ideal(module.module, module.signature), ideal(loop.module, loop.signature)
    assert sum(one.flops for one in turns) == sum(one.flops for one in costs) > 0
    weights = sum(tensor.nbytes for tensor in model.parameters())
    assert sum(one.bytes for one in turns) == sum(one.bytes for one in costs) >= weights
