"""Ensures that tables indexed by position have a row for every position of a request.

A gather past a table's end clamps and returns the last row. vLLM makes its tables as long as config.json says, and
VLLM_ALLOW_LONG_MAX_MODEL_LEN allows longer requests. A rotary table is a function of the position, as transformers
computes it, and is extended. A learned table cannot be: the model is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ...passes.program import Program, where
from ..core.errors import UnsupportedError
from . import compat

POSITIONS = "positions"
"""The name of the step's input with each token's position."""


def extend_rotary_tables(model: nn.Module, length: int) -> None:
    """Extends rotary tables to at least `length` rows. Those whose frequencies depend on a request's length, such as dynamic
    NTK scaling's, are left, and `check_tables` refuses them."""
    for module in model.modules():
        if isinstance(module, compat.LongRotaryEmbedding):
            _extend_long(module, length)
        elif type(module) in compat.STATIC_ROTARY:
            old = module.get_buffer("cos_sin_cache")
            if len(old) < length:
                _replace(module, "cos_sin_cache", old, _table(module, length))


def check_tables(program: Program, length: int) -> None:
    """Raises UnsupportedError where a table that the graph reads at `positions` has fewer rows than `length` positions need."""
    offsets: dict[fx.Node, int] = {
        node: 0
        for node, argument in zip(program.placeholders, program.arguments, strict=True)
        if argument.name == POSITIONS
    }
    names = {node: argument.name for node, argument in zip(program.placeholders, program.arguments, strict=True)}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        for table, index in _reads(node):
            if index in offsets:
                _check(node, names.get(_whole(table), str(table)), table, offsets[index], length)
        offset = _offset(node, offsets)
        if offset is not None:
            offsets[node] = offset


# -- rotary tables -----------------------------------------------------------------------------------------------------


def _table(rotary: Any, length: int) -> torch.Tensor | None:
    """float32 [length, rotary_dim]: cos and sin concatenated, as `_compute_cos_sin_cache` of the module's class returns them."""
    scaling = getattr(rotary, "scaling_factor", None)
    scaled = (compat.YaRNScalingRotaryEmbedding, compat.DeepseekScalingRotaryEmbedding)
    argument = scaling if isinstance(rotary, scaled) else rotary.base
    frequencies = rotary._compute_inv_freq(argument)
    positions = torch.arange(length, dtype=torch.float)
    if isinstance(rotary, compat.LinearScalingRotaryEmbedding):
        if len(rotary.scaling_factors) != 1:
            return None  # concatenated tables, of LoRA adapters
        positions = positions / rotary.scaling_factors[0]
    angles = torch.einsum("i,j -> ij", positions, frequencies)
    scale = getattr(rotary, "mscale", 1.0)
    return torch.cat((angles.cos() * scale, angles.sin() * scale), dim=-1)


def _replace(module: nn.Module, name: str, old: torch.Tensor, new: torch.Tensor | None) -> None:
    """Sets the longer table if it begins with the rows of the old one, bit for bit."""
    if new is not None and torch.equal(new[: len(old)].to(old.dtype), old):
        setattr(module, name, new.to(old.dtype))


def _extend_long(rotary: Any, length: int) -> None:
    """Extends the second of two concatenated tables: of short factors up to the original length, then of long factors."""
    old, split = rotary.long_short_cos_sin_cache, rotary.original_max_position_embeddings
    if len(old) - split < length:
        longer = rotary._compute_cos_sin_cache(length, rotary.long_factor, rotary.long_mscale).to(old.dtype)
        _replace(rotary, "long_short_cos_sin_cache", old, torch.cat([old[:split], longer]))


# -- the graph ---------------------------------------------------------------------------------------------------------

_SAME = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "flatten", "clone", "alias", "detach", "_to_copy", "to")  # fmt: skip
"""Names of ATen ops that preserve the values of positions."""


def _offset(node: fx.Node, offsets: dict[fx.Node, int]) -> int | None:
    """The constant by which the node's elements exceed positions; None where they are not positions plus a constant."""
    name = _name(node)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in offsets:
        return None
    if name in _SAME:
        return offsets[source]
    if name == "add" and len(node.args) > 1:
        added = _constant(node.args[1])
        return None if added is None else offsets[source] + added
    return None


def _constant(value: object) -> int | None:
    """The value of an int, or of a (cast) `full` or `full_like` tensor; None for others."""
    while isinstance(value, fx.Node):
        if _name(value) in ("full", "full_like"):
            value = value.args[1]
        elif _name(value) in _SAME:
            value = value.args[0]
        else:
            return None
    return value if isinstance(value, int) else None


def _reads(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields (table, indices) of an op that reads rows of a table: embedding, index_select along the first dimension, index."""
    name, args = _name(node), node.args
    if name == "embedding":
        yield args[0], args[1]  # type: ignore[misc]
    elif name == "index_select" and args[1] == 0:
        yield args[0], args[2]  # type: ignore[misc]
    elif name == "index" and isinstance(args[1], (list, tuple)) and isinstance(args[1][0], fx.Node):
        yield args[0], args[1][0]  # type: ignore[misc]


def _whole(table: fx.Node) -> fx.Node:
    """The placeholder of a table, through casts."""
    while table.op == "call_function" and _name(table) in _SAME:
        table = table.args[0]  # type: ignore[assignment]
    return table


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _check(node: fx.Node, name: str, table: fx.Node, offset: int, length: int) -> None:
    rows = table.meta["val"].shape[0]
    if rows < length + offset:
        raise UnsupportedError(
            f"the table {name} has rows for {rows - offset} positions, and max_model_len is {length}",
            where=where(node),
            next_step=f"set --max-model-len to {rows - offset} or less: what the model has not learned cannot be extended",
        )
