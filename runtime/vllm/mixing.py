"""Refuses a model that mixes tokens elsewhere than in attention and in layers with a state.

A step holds the tokens of several requests, and of a request those that are new. Attention and recurrent layers are ops that know where each
request begins and what it had before; plain torch that shifts, pads or compares tokens (a convolution of keys, attention written out) does
not: it would compute something else from the second step on. vLLM's Transformers backend takes such models without a word.

Comes in: the captured step. Guaranteed: no size of a value is the number of tokens and something more, and none has it twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...passes.program import Program, where
from ..core.errors import UnsupportedError


def check_tokens_apart(program: Program) -> None:
    """Raises UnsupportedError with the line of the first op whose result mixes tokens."""
    tokens = next(dim.symbol for dim in program.dims if dim.name == "tokens")
    used = _used(program.graph)
    for node in program.graph.nodes:
        val = node.meta.get("val")
        if node not in used or not isinstance(val, torch.Tensor):
            continue
        shape: tuple[Any, ...] = tuple(val.shape)
        sizes = [size.node.expr for size in shape if isinstance(size, torch.SymInt)]
        having = [size for size in sizes if tokens in size.free_symbols]
        if len(having) > 1 or any(size.is_Add for size in having):
            raise UnsupportedError(
                f"this model mixes the tokens of a step outside of attention: {node.target} gives {list(val.shape)}, where {tokens} is the number of tokens",
                where=where(node),
                next_step="serve this model on another platform of vLLM, whose results may be wrong for the same reason",
            )


def _used(graph: fx.Graph) -> set[fx.Node]:
    """The nodes on which a result depends."""
    used: set[fx.Node] = set()
    todo = [graph.output_node()]
    while todo:
        node = todo.pop()
        if node not in used:
            used.add(node)
            todo.extend(node.all_input_nodes)
    return used
