"""Rewrites ops that draw from torch's generator to functions of a key, which is an input of the program.

Comes in: a program with ops such as `aten.rand`. Goes out: the same with one more input, `rng_key` int32 [2], and a
`fxhlo.random_bits` of the key for every draw, each with a stream of its own. Guaranteed: the same key gives the same samples on every
target; the distributions are torch's, the samples are not those of torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log1p, sqrt
from typing import Any

import torch
from torch import Tensor, fx

from ...runtime.core.errors import UnsupportedError
from ...runtime.core.signature import RANDOM_KEY
from ..base import Pass
from ..edit import add_placeholder, call, inline
from ..program import Argument, Program
from ..torch_private import OpOverload, schema_of

aten = torch.ops.aten

Bits = Callable[[Tensor], Tensor]
"""Random bits, int32, with the shape of a tensor; every call draws from another stream."""


@dataclass(frozen=True)
class RandomKey(Pass):
    """Rewrites random ops to functions of a key. A program without random ops is returned as it is."""

    def __call__(self, program: Program) -> Program:
        if not any(node.target in DISTRIBUTIONS for node in program.graph.nodes):
            return program
        edited = program.edited(_edit)
        return replace(edited, arguments=(*program.arguments, Argument(RANDOM_KEY, "input")))


def _edit(graph: fx.Graph) -> None:
    drawing = [node for node in graph.nodes if node.target in DISTRIBUTIONS]
    key = add_placeholder(graph, RANDOM_KEY, (2,), torch.int32)
    streams = iter(range(2**31))
    for node in drawing:
        shape_of, function = DISTRIBUTIONS[node.target]
        given = _by_name(node)
        given.pop("generator", None)
        with graph.inserting_before(node):
            like = given[shape_of]
            if not isinstance(like, fx.Node) or not isinstance(like.meta["val"], Tensor):
                size = [like] if shape_of == "n" else like
                like = call(graph, aten.empty.memory_format, (size,), {"dtype": torch.int32}, origin=node)
            names = [name for name, value in given.items() if isinstance(value, fx.Node) and name != shape_of]
            static = {name: value for name, value in given.items() if name not in names and name != shape_of}
            value = node.meta["val"]
            static["dtype"] = (value[0] if isinstance(value, tuple | list) else value).dtype

            def draw(key: Tensor, like: Tensor, *operands: Any, names: Any = names, static: Any = static,
                     function: Any = function) -> Any:  # fmt: skip
                bits: Bits = lambda like: torch.ops.fxhlo.random_bits(  # noqa: E731
                    key, like.real if like.is_complex() else like, stream=next(streams)
                )
                return function(bits, like, **dict(zip(names, operands, strict=True)), **static)

            outputs = inline(graph, draw, (key, like, *[given[name] for name in names]), {}, origin=node)
        _replace(graph, node, outputs)


def _by_name(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by the schema's names, defaults included."""
    assert isinstance(node.target, OpOverload)
    arguments = schema_of(node.target).arguments
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False)) | dict(node.kwargs)
    for argument in arguments:
        if argument.name not in given and argument.has_default_value():
            given[argument.name] = argument.default_value
    return {name.replace("from", "low"): value for name, value in given.items() if name not in IGNORED}


IGNORED = {"layout", "device", "pin_memory", "memory_format", "dtype"}


def _replace(graph: fx.Graph, node: fx.Node, outputs: Any) -> None:
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    else:
        for user in list(node.users):
            index: Any = user.args[1]
            user.replace_all_uses_with(outputs[index])
            graph.erase_node(user)
    graph.erase_node(node)


# -- distributions -------------------------------------------------------------------------------------------------

DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


def _unit(bits: Bits, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform over [0, 1), in multiples of a step that `dtype` represents exactly, so that rounding never gives 1."""
    if dtype is torch.float64:
        high, low = (bits(like) >> 5) & 0x7FFFFFF, (bits(like) >> 6) & 0x3FFFFFF
        return (high.to(dtype) * 2.0**26 + low.to(dtype)) * 2.0**-53
    digits = DIGITS[dtype]
    return (((bits(like) >> (32 - digits)) & (2**digits - 1)).to(torch.float32) * 2.0**-digits).to(dtype)


def _open(bits: Bits, like: Tensor) -> Tensor:
    """float32, uniform over (0, 1)."""
    return (((bits(like) >> 9) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23


def _gauss(bits: Bits, like: Tensor) -> Tensor:
    """float32, standard normal, by the inverse of its cumulative distribution function."""
    return torch.erfinv(2 * _open(bits, like) - 1) * sqrt(2)


def _complex(draw: Callable[[torch.dtype], Tensor], dtype: torch.dtype) -> Tensor:
    """Real and imaginary part, drawn one after the other."""
    return torch.complex(draw(dtype.to_real()), draw(dtype.to_real()))


def _whole(bits: Bits, like: Tensor) -> Tensor:
    """int64, uniform over 0 to 2**62 - 1."""
    return ((bits(like).to(torch.int64) & 0x7FFFFFFF) << 31) | (bits(like).to(torch.int64) & 0x7FFFFFFF)


def uniform(bits: Bits, like: Tensor, *, dtype: torch.dtype, low: float = 0.0, to: float = 1.0) -> Tensor:
    if dtype.is_complex:
        return _complex(lambda part: uniform(bits, like, dtype=part, low=low, to=to), dtype)
    unit = _unit(bits, like, dtype)
    return unit if (low, to) == (0.0, 1.0) else (unit * (to - low) + low).to(dtype)


def normal(
    bits: Bits, like: Tensor, *, dtype: torch.dtype, mean: Tensor | float = 0.0, std: Tensor | float = 1.0
) -> Tensor:
    """Both parts of a complex sample have the mean and half of the variance, as torch has it."""
    if dtype.is_complex:
        return _complex(lambda part: normal(bits, like, dtype=part, mean=mean, std=std * sqrt(0.5)), dtype)
    return (_gauss(bits, like) * std + mean).to(dtype)


def normal_of_tensors(
    bits: Bits, like: Tensor, *, dtype: torch.dtype, mean: float | None = None, std: Tensor | float = 1.0
) -> Tensor:
    """like: the mean, or the standard deviation where the mean is a scalar."""
    center, spread = (like, std) if mean is None else (mean, like)
    if isinstance(center, Tensor) and isinstance(spread, Tensor):
        like = torch.empty(torch.broadcast_shapes(center.shape, spread.shape), dtype=torch.int32, device=like.device)
    standard = normal(bits, like, dtype=dtype) if dtype.is_complex else _gauss(bits, like)
    return (standard * spread + center).to(dtype)


def integers(bits: Bits, like: Tensor, *, dtype: torch.dtype, high: Tensor | int, low: int = 0) -> Tensor:
    if isinstance(high, int) and isinstance(low, int) and high - low > 2**62:
        raise UnsupportedError(
            f"integers over the range from {low} to {high}, of which 62 bits are drawn",
            next_step="ask for a range of up to 2**62",
        )
    return (torch.remainder(_whole(bits, like), high - low) + low).to(dtype)


def permutation(bits: Bits, like: Tensor, *, dtype: torch.dtype) -> Tensor:
    return torch.sort(_whole(bits, like)).indices.to(dtype)


def bernoulli(bits: Bits, like: Tensor, *, dtype: torch.dtype, p: Tensor | float | None = None) -> Tensor:
    """1 with probability p; without p, with the probabilities in `like`."""
    return (_open(bits, like) < (like if p is None else p)).to(dtype)


def dropout(
    bits: Bits, like: Tensor, *, dtype: torch.dtype, p: float, train: bool | None = None
) -> tuple[Tensor, Tensor]:
    """(what is kept, scaled by 1 / (1 - p); the mask, bool)."""
    if train is False or p == 0:
        return like.clone(), torch.ones_like(like, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool)
    kept = _open(bits, like) >= p
    return like * kept.to(dtype) * (1 / (1 - p)), kept


def exponential(bits: Bits, like: Tensor, *, dtype: torch.dtype, lambd: float = 1.0) -> Tensor:
    return (torch.log(_open(bits, like)) / -lambd).to(dtype)


def geometric(bits: Bits, like: Tensor, *, dtype: torch.dtype, p: float) -> Tensor:
    """The number of trials up to the first success: 1, 2, ..."""
    if p == 1:
        return torch.ones_like(like, dtype=dtype)
    return torch.clamp(torch.ceil(torch.log(_open(bits, like)) / log1p(-p)), min=1).to(dtype)


def cauchy(bits: Bits, like: Tensor, *, dtype: torch.dtype, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return (torch.tan(torch.pi * (_open(bits, like) - 0.5)) * sigma + median).to(dtype)


def log_normal(bits: Bits, like: Tensor, *, dtype: torch.dtype, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return torch.exp(_gauss(bits, like) * std + mean).to(dtype)


def multinomial(bits: Bits, like: Tensor, *, dtype: torch.dtype, num_samples: int, replacement: bool = False) -> Tensor:
    """Indices drawn by weight from each row of `like`; without replacement by an exponential race."""
    weights = like.to(torch.float32)
    if not replacement:
        return torch.topk(weights / -torch.log(_open(bits, like)), num_samples, dim=-1).indices
    mass = torch.cumsum(weights, -1)
    shape = (*like.shape[:-1], num_samples)
    drawn = _open(bits, torch.empty(shape, dtype=torch.int32, device=like.device)) * mass[..., -1:]
    return (mass.unsqueeze(-2) <= drawn.unsqueeze(-1)).sum(-1).clamp(max=like.shape[-1] - 1)


def rrelu(
    bits: Bits, like: Tensor, *, dtype: torch.dtype, noise: Tensor, lower: float = 0.125, upper: float = 1 / 3,
    training: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(result, slopes)."""
    if not training:
        return torch.where(like < 0, like * ((lower + upper) / 2), like).to(dtype), noise.clone()
    slopes = (_open(bits, like) * (upper - lower) + lower).to(dtype)
    slopes = torch.where(like <= 0, slopes, 1)
    return like * slopes, slopes.to(noise.dtype)


DISTRIBUTIONS: dict[OpOverload, tuple[str, Callable[..., Tensor | tuple[Tensor, Tensor]]]] = {
    aten.rand.default: ("size", uniform),
    aten.rand.generator: ("size", uniform),
    aten.rand_like.default: ("self", uniform),
    aten.rand_like.generator: ("self", uniform),
    aten.uniform.default: ("self", uniform),
    aten.randn.default: ("size", normal),
    aten.randn.generator: ("size", normal),
    aten.randn_like.default: ("self", normal),
    aten.randn_like.generator: ("self", normal),
    aten.normal_functional.default: ("self", normal),
    aten.normal.float_float: ("size", normal),
    aten.normal.Tensor_Tensor: ("mean", normal_of_tensors),
    aten.normal.Tensor_float: ("mean", normal_of_tensors),
    aten.normal.float_Tensor: ("std", normal_of_tensors),
    aten.randint.default: ("size", integers),
    aten.randint.generator: ("size", integers),
    aten.randint.low: ("size", integers),
    aten.randint.low_generator: ("size", integers),
    aten.randint_like.default: ("self", integers),
    aten.randint_like.generator: ("self", integers),
    aten.randint_like.Tensor: ("self", integers),
    aten.randint_like.Tensor_generator: ("self", integers),
    aten.randint_like.low_dtype: ("self", integers),
    aten.randint_like.low_generator_dtype: ("self", integers),
    aten.randperm.default: ("n", permutation),
    aten.randperm.generator: ("n", permutation),
    aten.bernoulli.default: ("self", bernoulli),
    aten.bernoulli.p: ("self", bernoulli),
    aten.bernoulli.Tensor: ("self", bernoulli),
    aten.native_dropout.default: ("input", dropout),
    aten.exponential.default: ("self", exponential),
    aten.geometric.default: ("self", geometric),
    aten.cauchy.default: ("self", cauchy),
    aten.log_normal.default: ("self", log_normal),
    aten.multinomial.default: ("self", multinomial),
    aten.rrelu_with_noise_functional.default: ("self", rrelu),
}
"""Op -> (the parameter that gives the shape, the distribution)."""
