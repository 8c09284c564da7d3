"""Replaces matmuls with a transposed weight by `fxhlo.linear`, which reads the weight in its own layout."""

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
TRANSPOSES = {aten.t.default, aten.permute.default, aten.transpose.int, aten.numpy_T.default}


@dataclass(frozen=True)
class Linear(Pass):
    """mm(x, w.T) and addmm(b, x, w.T), where w is an argument of the program."""

    def __call__(self, program: Program) -> Program:
        return REWRITE(program)


class Product(NamedTuple):
    """values [M, K] times right [K, N], plus bias. scaled: whether beta or alpha is given."""

    values: fx.Node
    right: fx.Node
    bias: fx.Node | None
    scaled: bool


def _pattern(node: fx.Node) -> Product | None:
    """Products whose right operand is a weight, or the transpose of anything."""
    if node.target is aten.mm.default:
        (values, right), bias = node.args, None
    elif node.target is aten.addmm.default:
        bias, values, right = node.args
    else:
        return None
    if not isinstance(values, fx.Node) or not isinstance(right, fx.Node):
        return None
    if right.op != "placeholder" and right.target not in TRANSPOSES:
        return None
    return Product(values, right, bias if isinstance(bias, fx.Node) else None, bool(node.kwargs))


def _guard(product: Product) -> str | None:
    if product.right.op == "placeholder":
        return "the weight lies in memory as [inputs, outputs], and is multiplied as it is"
    weight = product.right.args[0]
    if not isinstance(weight, fx.Node) or weight.op != "placeholder" or weight.meta["val"].ndim != 2:
        return "the transposed operand is computed, not a weight"
    if product.scaled:
        return "addmm is called with alpha or beta"
    if product.bias is not None and list(product.bias.meta["val"].shape) != [weight.meta["val"].shape[0]]:
        return "the bias is not one number for each output"
    return None


def _replacement(graph: fx.Graph, node: fx.Node, product: Product) -> fx.Node:
    weight = product.right.args[0]
    return call(graph, torch.ops.fxhlo.linear.default, (product.values, weight, product.bias), origin=node)


REWRITE = Rewrite(Linear.name, _pattern, _guard, _replacement)
