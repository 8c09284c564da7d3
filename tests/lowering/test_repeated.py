"""Capture of repeated layers: some are traced and the others copied, and the graph is that of the whole trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from program_text import written
from torch import fx, nn

from fxhlo.lowering.capture import alike as comparing
from fxhlo.lowering.capture import callable as capturing
from fxhlo.lowering.capture import repeated
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.program import Program

WIDTH = 8


class Block(nn.Module):
    """names: its own, which an op gets. scale: a number."""

    def __init__(self, number: int, scale: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.register_buffer("shift", torch.full((WIDTH,), float(number)))
        self.name, self.scale = f"model.layers.{number}.attn", scale

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = x if residual is None else residual + x
        heads = self.up(residual).view(-1, 4, 4)
        heads = torch.ops.fxhlo.attention(
            heads, heads, heads, None, None, layer=self.name, scale=self.scale, sliding_window=0, soft_cap=0.0
        )
        turned = heads.reshape(-1, 2 * WIDTH) * torch.cos(positions[:, None] * 0.1) / residual.shape[0]
        return self.down(turned) + self.shift, residual


class Model(nn.Module):
    def __init__(self, make: Callable[[int], nn.Module], count: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make(number) for number in range(count)])
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.kept.clear()
        CALLS.clear()
        residual = None
        for layer in self.layers:
            x, residual = layer(x, positions, residual)
        return sum(self.kept, x + residual)


def captured(model: nn.Module) -> Program:
    inputs = [Input("x", ("tokens", WIDTH), torch.float32), Input("positions", ("tokens",), torch.float32)]
    return capture_callable(model, model, inputs, {"tokens": (1, 64)}, copied=(__name__, "torch.nn"))


def both(model: nn.Module) -> tuple[Program, Program, int]:
    """The capture with copies, the whole one, and how many layers were copied."""
    copied: list[fx.Node] = []  # by captures that were not given up
    copy = repeated._copy
    with patch.object(
        repeated, "_copy", lambda graph, body, node, names: (copied.append(node), copy(graph, body, node, names))
    ):
        short = captured(model)
    with patch.object(repeated.Layers, "watched", lambda self: nullcontext()):
        whole = captured(model)
    return short, whole, len(copied)


def test_most_layers_are_copied_and_the_graph_is_the_same() -> None:
    """The first layer has no residual, three are traced, two copied."""
    short, whole, copied = both(Model(Block))
    assert copied == 2
    assert written(short) == written(whole)
    names = [node.kwargs["layer"] for node in short.graph.nodes if "attention" in str(node.target)]
    assert names == [f"model.layers.{number}.attn" for number in range(6)]


def test_layers_in_turn_are_kinds_of_their_own() -> None:
    short, whole, copied = both(Model(lambda number: Block(number, 1.0 if number % 2 else 2.0), 10))
    assert copied == 3  # of the first kind one has no residual
    assert written(short) == written(whole)


class Mutating(Block):
    """Writes to what it is given."""

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        positions.add_(1)
        return super().forward(x, positions, residual)


class Counting(Block):
    """Writes to a buffer."""

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        self.shift.add_(1)
        return super().forward(x, positions, residual)


class Numbered(Block):
    """Has a number of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        return super().forward(x * self.number, positions, residual)


class Closed(Block):
    """Holds a function that differs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.turn = lambda x: x * number

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        return super().forward(self.turn(x), positions, residual)


class Holding(Block):
    """Holds a tensor that is no parameter."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.held = [torch.full((WIDTH,), float(number))]

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        return super().forward(x + self.held[0], positions, residual)


CALLS: list[int] = []


class Global(Block):
    """Depends on what is outside of the model."""

    def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
        CALLS.append(1)
        return super().forward(x * len(CALLS), positions, residual)


@pytest.mark.parametrize("layer", [Mutating, Counting, Numbered, Closed, Holding, Global])
def test_layers_that_are_not_alike_are_all_traced(layer: type[Block]) -> None:
    short, whole, copied = both(Model(layer))
    assert not copied
    assert written(short) == written(whole)


def test_a_layer_that_leaves_a_tensor_behind_is_traced() -> None:
    """A list of the model's that each layer appends to."""
    kept: list[torch.Tensor] = []

    class Leaving(Block):
        def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
            x, residual = super().forward(x, positions, residual)
            kept.append(x)
            return x, residual

    class Collecting(Model):
        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            kept.clear()
            return super().forward(x, positions) + torch.stack(kept).sum(0)

    short, whole, _ = both(Collecting(Leaving))
    assert written(short) == written(whole)
    stack = next(node for node in short.graph.nodes if "cat" in str(node.target) or "stack" in str(node.target))
    assert len(stack.args[0]) == 6


@pytest.mark.parametrize("of", ["what is given", "another result"])
def test_a_layer_that_returns_a_view_is_traced(of: str) -> None:
    """Writing to the view afterwards writes to the other tensor."""

    class Viewing(Block):
        def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
            x, added = super().forward(x, positions, residual)
            return (x, residual.view(-1, WIDTH)) if of == "what is given" else (added.view(-1, WIDTH), added)

    class Changing(Model):
        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            residual = x * 1
            for layer in self.layers:
                before = residual
                x, residual = layer(x, positions, residual)
                residual.add_(1)
                x = x + before
            return x

    short, whole, _ = both(Changing(Viewing))
    assert written(short) == written(whole)


def test_a_names_end_is_not_taken_for_another() -> None:
    assert repeated.renamed("model.layers.1.attn", "layers.1", "layers.12") == "model.layers.12.attn"
    assert repeated.renamed("model.layers.11.attn", "layers.1", "layers.2") == "model.layers.11.attn"
    assert repeated.renamed("my-layers.1", "layers.1", "layers.2") == "my-layers.1"
    assert capturing.Layers is repeated.Layers


class Sharing(Model):
    """Three layers in a row have one product, which the first of them or the model owns."""

    def __init__(self, owner: str) -> None:
        super().__init__(Block, 12)
        self.products = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4)] if owner == "model" else [])
        for number, layer in enumerate(self.layers):
            layer.up = self.products[number // 3] if owner == "model" else self.layers[number // 3 * 3].up


@pytest.mark.parametrize("owner", ["model", "the first layer"])
def test_layers_that_share_weights_with_some_are_traced(owner: str) -> None:
    short, whole, _ = both(Sharing(owner))
    assert written(short) == written(whole)


def test_parameters_beside_the_modules_are_the_layers_own_or_the_same() -> None:
    class Lent(Block):
        def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
            return super().forward(x + self.held[0].sum(), positions, residual)

    model = Model(Lent, 14)
    for number, layer in enumerate(model.layers):
        layer.held = [model.layers[0 if number < 5 else number].up.bias]
    short, whole, copied = both(model)
    assert copied
    assert written(short) == written(whole)


def test_arguments_that_may_change_between_calls_are_not_taken_for_equal() -> None:
    class Told(Block):
        def forward(self, x, positions, told):  # type: ignore[no-untyped-def]
            return super().forward(x * told.scale, positions, None)

    class Telling(Model):
        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            told = Part(0)
            for number, layer in enumerate(self.layers):
                told.scale = 2.0 if number % 4 == 3 else 1.0
                x, _ = layer(x, positions, told)
            return x

    short, whole, copied = both(Telling(Told, 12))
    assert not copied
    assert written(short) == written(whole)


def test_modules_of_other_packages_are_traced_whole() -> None:
    """What a layer makes of its name cannot be seen in what it holds."""

    class Reading(Block):
        def forward(self, x, positions, residual):  # type: ignore[no-untyped-def]
            return super().forward(x * (2.0 if int(self.name.split(".")[2]) % 4 == 3 else 1.0), positions, residual)

    model = Model(Reading, 12)
    inputs = [Input("x", ("tokens", WIDTH), torch.float32), Input("positions", ("tokens",), torch.float32)]
    whole = capture_callable(model, model, inputs, {"tokens": (1, 64)})
    Reading.__module__ = "elsewhere"
    other = captured(model)
    assert written(other) == written(whole)


class Part:
    """A plain object."""

    def __init__(self, value: object) -> None:
        self.value, self.others = value, {"a": [1, (2, value)], "b": {value: None}}


def part(value: object) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    module.part = Part(value)
    module.inner = nn.ModuleDict({"x": nn.Linear(2, 2)})
    return module


def alike(one: nn.Module, other: nn.Module, paths: tuple[str, str]) -> bool:
    """Of modules that share nothing."""
    tensors = [
        comparing.Tensors.of(module, path, {key: [f"{path}.{name}" for name in names] for key, names in owners.items()})
        for module, path in zip((one, other), paths, strict=True)
        for owners in [comparing.owners_of(module)]
    ]
    return comparing.alike(one, other, paths, (tensors[0], tensors[1]))


class Named(dict):  # type: ignore[type-arg]
    """A dict with attributes, as a config may be."""

    __hash__ = object.__hash__


def named(scale: float) -> Named:
    made = Named(a=1)
    made.scale = scale
    return made


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (named(1.0), named(2.0), False),
        (1, 1, True), (1, 2, False), (1, 1.0, False), (0.0, -0.0, False), (1, True, False), ("layers.3.x", "layers.4.x", True),
        ("layers.3.x", "layers.3.y", False), ("layers.4", "layers.3", False), (None, 0, False), ((1, 2), (1, 3), False), (torch.float32, torch.float16, False),
    ],
)  # fmt: skip
def test_what_is_alike(one: object, other: object, same: bool) -> None:
    """Wherever it is: in an object, a list in it, or a key."""
    for _ in range(20):  # identities of what lives shortly are given again
        assert alike(part(one), part(other), ("model.layers.3", "model.layers.4")) == same


def test_what_cannot_be_looked_into_is_alike_where_it_is_the_same() -> None:
    held = object()
    paths = ("layers.3", "layers.4")
    for value in (held, torch.zeros(9999), lambda: None, threading.Lock()):
        assert alike(part(value), part(value), paths)
    for make in (object, lambda: torch.zeros(9999), lambda: lambda: None, threading.Lock):
        assert not alike(part(make()), part(make()), paths)


def test_small_tensors_are_alike_by_their_bits() -> None:
    paths = ("layers.3", "layers.4")
    assert alike(part(torch.tensor([1.0, 2.0])), part(torch.tensor([1.0, 2.0])), paths)
    assert alike(part(torch.zeros(0)), part(torch.zeros(0)), paths)
    for other in (torch.tensor([1.0, 3.0]), torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]])):
        assert not alike(part(torch.tensor([1.0, 2.0])), part(other), paths)
    assert not alike(part(torch.tensor(0.0)), part(torch.tensor(-0.0)), paths)


def test_parameters_are_alike_by_type_and_buffers_too() -> None:
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    other.running_mean.fill_(7)
    assert alike(one, other, ("layers.3", "layers.4"))
    assert not alike(one, nn.BatchNorm1d(4), ("layers.3", "layers.4"))
    other.weight.flag = True
    assert not alike(one, other, ("layers.3", "layers.4"))
