"""Repeated layers as functions: the same module as the flat one, in fewer ops."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from differential import compiled
from torch import nn

from fxhlo.lowering.capture.exporting import capture
from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.module import HloModule
from fxhlo.passes import mlir
from fxhlo.passes.default import default_passes
from fxhlo.passes.hlo.calls import runs
from fxhlo.passes.pipeline import run
from fxhlo.passes.program import Program
from fxhlo.passes.repeats import Layer, items_of
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.tools.report.ideal import ideal

WIDTH = 8


class Stack(nn.Module):
    """layer: makes the layer of a number."""

    def __init__(self, layer: Callable[[int], nn.Module], count: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer(number) for number in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Gated(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.factor = 1.0 if number % 3 else 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up) * self.factor


class Counting(Gated):
    """Updates a buffer."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return super().forward(x) + self.calls


class Sized(Gated):
    """Has numbers that depend on sizes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + torch.arange(y.shape[0])[:, None] / (1 + y.shape[0])


class Branching(Gated):
    """Holds regions of control flow, of its own in each layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.cond(y.sum() > 0, lambda y: y + 1, lambda y: y - 1, (y,))


class Attending(Gated):
    """Calls a composite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(1, -1, 2, WIDTH // 2).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return super().forward(x + attended.transpose(1, 2).reshape(x.shape))


class Dropping(Gated):
    """Draws random numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand_like(x)


def program_of(module: nn.Module, dynamic: bool = False) -> Program:
    shapes = ({0: torch.export.Dim("rows", min=2, max=64)},) if dynamic else None
    torch.manual_seed(0)
    return run(default_passes(), capture(module, (torch.randn(6, WIDTH),), dynamic_shapes=shapes))


def layers_of(program: Program) -> list[Layer]:
    return [item for item in items_of(program) if isinstance(item, Layer)]


def results(hlo: HloModule) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = hlo.arrays()
    arrays = [
        tensors[one.name]
        if one.name in tensors
        else np.array([1, 2], np.int32)
        if one.dtype != "float32"
        else rng.standard_normal(one.shape, np.float32)
        for one in hlo.signature.arguments
    ]
    return compiled(hlo)(arrays)


@pytest.mark.parametrize("layer", [Gated, Counting, Sized, Branching, Attending, Dropping])
@pytest.mark.parametrize("dynamic", [False, True])
def test_functions_compute_what_the_flat_form_does(layer: type[nn.Module], dynamic: bool) -> None:
    """To the bit, for every binding of sizes."""
    program = program_of(Stack(layer), dynamic)
    assert bool(layers_of(program)) == (layer not in (Branching, Dropping))  # each draw has a number of its own
    for rows in (2, 9) if dynamic else (6,):
        bindings = {"rows": rows} if dynamic else {}
        functions, flat = emit(program, bindings), emit(program, bindings, flat=True)
        assert functions.signature == flat.signature
        for one, other in zip(results(functions), results(flat), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_a_kind_of_layer_is_one_function() -> None:
    """Its size is that of one layer, whatever the depth."""
    texts = [emit(program_of(Stack(Gated, count))) for count in (6, 12)]
    for count, hlo in zip((6, 12), texts, strict=True):
        called = {name: times for name, times in runs(hlo.module).items() if name.startswith("Gated")}
        assert sorted(called.values()) == [count // 3, count - count // 3]
        assert hlo.text.count("stablehlo.dot_general") == 4
    assert emit(program_of(Stack(Gated, 6)), flat=True).text.count("stablehlo.dot_general") == 12


def test_locations_say_which_layer_and_which_line() -> None:
    """A call has the layer's path; an op the path below it and the user's line."""
    text = emit(program_of(Stack(Gated))).text
    names = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.M))
    calls = [names[loc] for loc in re.findall(r"call @Gated\w*\(.*loc\((#loc\d*)\)", text)]
    assert [re.match(r'"([^"]*)"', call)[1] for call in calls] == [f"layers.{number}" for number in range(4)]
    (product, *_) = re.findall(r"dot_general.*loc\((#loc\d*)\)", text)
    path, line = re.match(r'"(\w+)"\((#loc\d*)\)', names[product]).groups()
    assert path in ("up", "down")
    assert __file__ in names[line] or "linear.py" in names[line]


def test_a_refusal_names_all_places() -> None:
    class Refused(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.poisson(x)

    program = program_of(Stack(Refused))
    with pytest.raises(FxhloError) as flat:
        emit(program, flat=True)
    with pytest.raises(FxhloError) as functions:
        emit(program)
    assert str(functions.value) == str(flat.value)


def test_lower_bounds_are_those_of_the_flat_form() -> None:
    """Per op and path: what reports are made of."""
    program = program_of(Stack(Attending))
    costs = [sorted(map(str, ideal(hlo.module, hlo.signature))) for hlo in (emit(program), emit(program, flat=True))]
    assert costs[0] == costs[1]
    assert any("layers.3" in cost for cost in costs[0])


def test_decisions_count_every_layer() -> None:
    class Linear(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.ops.fxhlo.linear(x, self.up.weight[:WIDTH], None))

    program = program_of(Stack(Linear))
    counts = [
        {(one.kernel, one.operands): one.count for one in hlo.legalized().decisions}
        for hlo in (emit(program), emit(program, flat=True))
    ]
    assert counts[0] == counts[1]
    assert 4 in counts[0].values()


def test_compiled_calls_carry_the_layers_path() -> None:
    """XLA inlines the calls; its op names join those of the call and of the op."""
    hlo = emit(program_of(Stack(Gated)))
    text = hlo.compile().loaded.text
    assert mlir.text(hlo.module).count("call @Gated") == 4
    assert "layers.3" in text and " call(" not in text
