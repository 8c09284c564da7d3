"""Which layers of a graph are repeated: those that differ in parameters and states alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from step_decoder import Decoder, Layer, captured_of
from torch import fx, nn

from fxhlo.lowering.capture.exporting import capture
from fxhlo.passes import repeats
from fxhlo.passes.default import default_passes
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.pipeline import run
from fxhlo.passes.program import Program

WIDTH = 8


class Block(nn.Module):
    """More ops than `repeats.LEAST`. scale: a number of its own."""

    def __init__(self, scale: float = 2.0, activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.scale, self.activation = scale, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.up(x)) * self.scale
        return x + torch.sigmoid(self.down(inner.exp() + 1))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def exported(module: nn.Module, *args: torch.Tensor) -> Program:
    return run(default_passes(), capture(module, args or (torch.randn(3, WIDTH),)))


def kinds(program: Program) -> list[list[str]]:
    """The paths of the layers of each kind."""
    found: dict[repeats.Layer, list[str]] = {}
    for item in repeats.items_of(program):
        if isinstance(item, repeats.Layer):
            found.setdefault(item.first, []).append(item.path)
    return list(found.values())


def check_order(program: Program) -> None:
    """Every node once, and behind its operands."""
    seen: set[fx.Node] = set()
    for item in repeats.items_of(program):
        nodes = item.nodes if isinstance(item, repeats.Layer) else (item,)
        outside = {operand for node in nodes for operand in node.all_input_nodes} - set(nodes)
        assert outside <= seen
        seen.update(nodes)
    assert Counter(seen) == Counter(program.graph.nodes)


def layers(*numbers: int) -> list[str]:
    return [f"layers.{number}" for number in numbers]


def test_equal_layers_are_one_kind() -> None:
    program = exported(Stack(*(Block() for _ in range(4))))
    assert kinds(program) == [layers(0, 1, 2, 3)]
    check_order(program)


def test_layers_in_turn_are_two_kinds() -> None:
    program = exported(Stack(*(Block(1.5 if index % 3 else 2.5) for index in range(6))))
    assert sorted(kinds(program)) == [layers(0, 3), layers(1, 2, 4, 5)]
    check_order(program)


def test_what_differs_is_not_merged() -> None:
    """A number, an op, a dtype, a shape: each is reason enough."""
    wide = Block()
    wide.up, wide.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
    whole, minus = Block(2), Block(-0.0)
    program = exported(Stack(Block(), Block(2.5), Block(activation=torch.sin), wide, whole, minus, Block(0.0)))
    assert kinds(program) == []
    assert kinds(exported(Stack(Block(), wide, Block()))) == [layers(0, 2)]  # whatever stands between


def test_a_layer_that_reads_one_value_twice_is_of_another_kind() -> None:
    class Two(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.left = nn.Parameter(torch.randn(WIDTH))
            self.right = self.left if same else nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = torch.tanh(x * self.left) + torch.sigmoid(x * self.right)
            return x

    assert kinds(exported(Stack(Two(True), Two(False)))) == []
    assert kinds(exported(Stack(Two(True), Two(False), Two(False)))) == [layers(1, 2)]


def test_a_module_that_is_called_again_is_a_layer_each_time() -> None:
    block = Block()

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(self.block(x)))

    assert kinds(exported(Same())) == [["block"] * 3]


def test_what_the_first_layer_computes_for_the_others_stays_outside() -> None:
    """Each layer computes it, and CSE leaves the first one's."""

    class Rotated(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            angles = torch.arange(x.shape[0])[:, None] / 7.0
            return super().forward(x * torch.cos(angles))

    program = exported(Stack(*(Rotated() for _ in range(3))))
    assert kinds(program) == [layers(0, 1, 2)]
    check_order(program)


def test_steps_of_a_decoder() -> None:
    """Caches are operands like weights; a window makes another kind."""
    model = Decoder([Layer(index, 5 if index % 2 else 0) for index in range(6)])
    program = run((PagedAttention(), Linear(), Donate(), Canonicalize()), captured_of(model))
    assert sorted(kinds(program)) == [layers(0, 2, 4), layers(1, 3, 5)]
    check_order(program)
    layer = next(item for item in repeats.items_of(program) if isinstance(item, repeats.Layer))
    assert [node.meta["val"].dim() for node in layer.operands].count(4) == 1  # the cache


def test_interleaved_calls_are_left_as_they_are() -> None:
    """A pass may move an op across a layer's end; a layer that then needs its own user's value is no layer."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    value = x.meta["val"] = torch.zeros(3)

    def ops(operand: fx.Node, count: int, path: str) -> fx.Node:
        for _ in range(count):
            operand = graph.call_function(torch.ops.aten.tanh.default, (operand,))
            operand.meta = {"val": value, "nn_module_stack": {"": ("", nn.Module), path: (path, nn.Module)}}
        return operand

    first, second = ops(x, 8, "a"), ops(x, 8, "b")
    between = graph.call_function(torch.ops.aten.add.Tensor, (first, second))
    between.meta = {"val": value}
    graph.output((ops(between, 1, "a"), ops(between, 1, "b")))
    order = repeats.in_layers(graph)
    assert order == tuple(graph.nodes)
