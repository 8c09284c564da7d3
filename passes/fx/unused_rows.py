"""Leaves out rows of a program that a step does not fill: they choose no expert, and `fxhlo.linear` is told how many rows are used.

A program has more rows than most of its steps. Attention knows which of them belong to a request; experts would be chosen by what is left in
the others, and their weights be read for nothing. For rows of a request, the program computes the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..base import Pass
from ..edit import inline
from ..extension import Extension, extended
from ..program import Program
from ..rewrite import noted
from ..step_inputs import BOUNDS, StepInput

aten = torch.ops.aten
IDS = 4
"""The position of topk_ids [T, k] among the operands of `fxhlo.moe`."""


MOVING = {
    aten.index_select.default: (1, 0), aten.gather.default: (1, 0), aten.scatter.src: (1, 0), aten.sort.default: (1, -1),
    aten.sort.stable: (2, -1), aten.flip.default: (1, 0), aten.roll.default: (2, 0), aten.cat.default: (1, 0),
}  # fmt: skip
"""Ops that may put a row in another place: the position of the argument that names the dimensions, and the dimension where it is not given."""


@dataclass(frozen=True)
class UnusedRows(Pass):
    """Of all tokens. Rows that were selected are left as they are: unused ones repeat the first token's row, and for log-probabilities of prompts
    all of them are used, whatever the number of requests. products: whether `fxhlo.linear` leaves rows out as well; only kernels on one device
    take their number. A model that moves rows itself keeps all of them."""

    products: bool = False

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return BOUNDS

    def __call__(self, program: Program) -> Program:
        ops = ("moe", "linear") if self.products else ("moe",)
        if not any(_calls(program.graph, op) for op in ops):
            return program
        moved = _moved(program)
        if moved:
            return noted(program, self.name, {"the model moves rows, and unused ones need not be the last": moved})

        def edit(graph: fx.Graph, extension: Extension) -> None:
            (starts,) = extension.inputs(self.inputs, {})
            tokens = str(extension.size("tokens").node.expr)
            sites = [(node, op) for op in ops for node in _calls(graph, op) if _rows(node) == tokens]
            like = next((node for node in graph.nodes if node.op == "placeholder" and _rows(node) == tokens), None)
            if like is None or not sites:
                return
            first = next(node for node in graph.nodes if node.op != "placeholder")
            with graph.inserting_before(first):  # once, and of no layer, so that layers stay alike
                used = inline(graph, _used, (starts,), {}, origin=starts)
                mask = inline(graph, _mask, (like, starts), {}, origin=starts)
            for node, op in sites:
                with graph.inserting_before(node):
                    node.args = _choose(graph, node, mask) if op == "moe" else (*node.args[:3], used)
            for made in (mask, used):
                if not made.users:
                    graph.erase_node(made)

        return extended(program, edit)


def _rows(node: fx.Node) -> str:
    """The size of the first dimension of a placeholder, or of the first operand of a call; "" for a number."""
    source: Any = node if node.op == "placeholder" else node.args[0]
    val = source.meta["val"]
    return str(val.shape[0]) if isinstance(val, torch.Tensor) and val.ndim else ""


def _moved(program: Program) -> list[fx.Node]:
    """The nodes that may move rows of all tokens."""
    symbols = {str(dim.symbol) for dim in program.dims if dim.name == "tokens"}

    def of_tokens(node: object) -> bool:
        val = node.meta.get("val") if isinstance(node, fx.Node) else None
        return isinstance(val, torch.Tensor) and val.ndim > 0 and str(val.shape[0]) in symbols

    def moves(node: fx.Node) -> bool:
        args: Any = node.args
        if node.target is aten.index.Tensor:
            return of_tokens(args[0]) and args[1][0] is not None
        if node.target not in MOVING or not of_tokens(node if node.target is aten.cat.default else args[0]):
            return False
        position, usual = MOVING[node.target]
        dims = args[position] if len(args) > position else usual
        rank = (args[0][0] if node.target is aten.cat.default else args[0]).meta["val"].ndim
        return any(dim % rank == 0 for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))

    return [node for node in program.graph.nodes if moves(node)]


def _calls(graph: fx.Graph, op: str) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is getattr(torch.ops.fxhlo, op).default]


def _choose(graph: fx.Graph, node: fx.Node, mask: fx.Node) -> tuple[Any, ...]:
    """The operands of experts, with ids that unused rows do not have. mask [T, 1]."""
    args: Any = node.args
    return (*args[:IDS], inline(graph, _ids, (args[IDS], mask), {}, origin=node), *args[IDS + 1 :])


# starts: query_start_loc [R + 1], whose last entry is the number of tokens in the step.


def _used(starts: Tensor) -> Tensor:
    return starts[-1:]


def _mask(like: Tensor, starts: Tensor) -> Tensor:
    rows = torch.arange(like.shape[0], dtype=starts.dtype, device=starts.device)
    return (rows < starts[-1]).unsqueeze(-1)


def _ids(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, ids, -1)
