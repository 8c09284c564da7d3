"""Gives recurrent layers their state: replaces each op over one sequence by its twin over all requests of a step, such as
`fxhlo.ssd` by `fxhlo.ragged_ssd`, with a state that has a row ("slot") per request.

The states are arguments of the program, and their new values are results; the requests' slots and lengths are inputs. For one
request that starts at position 0, the program computes the same as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..base import Pass
from ..edit import replace_by_stateful, values
from ..extension import Extension, extended
from ..program import Program
from ..rewrite import noted
from ..step_inputs import RECURRENT, StepInput
from ..torch_private import OpOverload

CONVOLUTION, RECURRENCE = "conv_state", "recurrent_state"
"""What a layer's states are called: `conv_state.<layer>` holds the last inputs of a convolution."""


@dataclass(frozen=True)
class Twin:
    """The op over a step that replaces one over a sequence. name: of its state. shape: of a slot, from the op's operands."""

    op: OpOverload
    name: str
    shape: Callable[..., tuple[int, ...]]


@dataclass(frozen=True)
class RecurrentState(Pass):
    """dtypes: of states by name; a convolution's is its input's where it is not named, and others are float32."""

    dtypes: tuple[tuple[str, torch.dtype], ...] = ()

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return RECURRENT

    def __call__(self, program: Program) -> Program:
        twins = _twins()
        sites = [node for node in program.graph.nodes if node.target in twins]
        unnamed = [node for node in sites if not node.kwargs["layer"]]
        if unnamed:
            program = noted(program, self.name, {"a layer without a name has no state of its own": unnamed})
        if len(sites) == len(unnamed):
            return program

        def edit(graph: fx.Graph, extension: Extension) -> None:
            step = extension.inputs(self.inputs, {})
            for node in list(graph.nodes):
                if node.target in twins and node.kwargs["layer"]:
                    self._replace(graph, node, twins[node.target], extension, step)

        return extended(program, edit)

    def _replace(self, graph: fx.Graph, node: fx.Node, twin: Twin, extension: Extension, step: list[fx.Node]) -> None:
        attributes = {name: value for name, value in node.kwargs.items() if name != "layer"}
        name = f"{twin.name}.{node.kwargs['layer']}"
        operands = values(node.args)
        shape: tuple[int | torch.SymInt, ...] = (extension.size("num_slots"), *twin.shape(*operands))
        usual = operands[0].dtype if twin.name == CONVOLUTION else torch.float32
        state = extension.state(name, shape, dict(self.dtypes).get(name, usual))
        args = (*node.args, state, *step)
        extension.update(name, replace_by_stateful(graph, node, twin.op, args, attributes))


def _twins() -> Mapping[OpOverload, Twin]:
    """By the op over one sequence; the ops are registered by `kernels.catalog.register_torch_ops`."""
    ops = torch.ops.fxhlo
    return {
        ops.causal_conv1d.default: Twin(ops.ragged_causal_conv1d.default, CONVOLUTION, _convolution),
        ops.selective_scan.default: Twin(ops.ragged_selective_scan.default, RECURRENCE, _selective_scan),
        ops.ssd.default: Twin(ops.ragged_ssd.default, RECURRENCE, _ssd),
        ops.gated_delta_rule.default: Twin(ops.ragged_gated_delta_rule.default, RECURRENCE, _outer),
        ops.lightning_attention.default: Twin(ops.ragged_lightning_attention.default, RECURRENCE, _outer),
    }


def _convolution(inputs: Tensor, weight: Tensor, *_: object) -> tuple[int, ...]:
    channels, taps = weight.shape
    return (taps - 1, channels)


def _selective_scan(x: Tensor, dt: Tensor, a: Tensor, *_: object) -> tuple[int, ...]:
    return tuple(a.shape)


def _ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, *_: object) -> tuple[int, ...]:
    return (*x.shape[1:], b.shape[2])


def _outer(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[int, ...]:
    """Of a memory of values by keys, a head each."""
    return (*v.shape[1:], k.shape[2])
