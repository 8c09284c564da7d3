"""Replaces silu(gate) * up over the two halves of a row by `fxhlo.silu_and_mul`, which reads each value once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from ..base import Pass
from ..edit import call
from ..program import Program
from ..rewrite import Rewrite

aten = torch.ops.aten


@dataclass(frozen=True)
class SiluAndMul(Pass):
    """mul(silu(x[:, :n]), x[:, n:]), in either order, where x is a matrix of 2 n columns."""

    def __call__(self, program: Program) -> Program:
        return REWRITE(program)


class Product(NamedTuple):
    """What goes through silu, and what it is multiplied by."""

    gate: object
    up: object


def _pattern(node: fx.Node) -> Product | None:
    if node.target is not aten.mul.Tensor:
        return None
    for silu, up in (node.args, node.args[::-1]):
        if isinstance(silu, fx.Node) and silu.target is aten.silu.default:
            return Product(silu.args[0], up)
    return None


def _guard(product: Product) -> str | None:
    gate, up = _half(product.gate), _half(product.up)
    if gate is None or up is None or gate.matrix is not up.matrix:
        return "gate and up are not the two halves of one matrix's columns"
    if gate.number == up.number:
        return "gate and up are the same half of the matrix"
    return "the gate is the second half of the matrix, and the kernel takes the first" if gate.number else None


def _replacement(graph: fx.Graph, node: fx.Node, product: Product) -> fx.Node:
    half = _half(product.gate)
    assert half is not None  # by the guard
    return call(graph, torch.ops.fxhlo.silu_and_mul.default, (half.matrix,), origin=node)


REWRITE = Rewrite(SiluAndMul.name, _pattern, _guard, _replacement)


class Half(NamedTuple):
    """The first (0) or the second (1) half of the columns of a matrix [rows, 2 n]."""

    matrix: fx.Node
    number: int


def _half(node: object) -> Half | None:
    if not isinstance(node, fx.Node) or node.target is not aten.slice.Tensor or len(node.args) != 4 or node.kwargs:
        return None
    source, dim, start, end = node.args
    if not isinstance(source, fx.Node) or not isinstance(start, int) or not isinstance(end, int):
        return None
    val = source.meta["val"]
    columns = val.shape[-1]
    if val.ndim != 2 or dim not in (1, -1) or not isinstance(columns, int) or columns % 2:
        return None
    halves = {(0, columns // 2): 0, (columns // 2, columns): 1}
    number = halves.get((start, min(end, columns)))
    return None if number is None else Half(source, number)
