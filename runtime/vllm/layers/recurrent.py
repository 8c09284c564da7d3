"""What the kinds of recurrent layers share: their states, the convolution in front of a recurrence, and how vLLM's ops that write
into their arguments are taken apart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ....passes.fx.recurrent_state import CONVOLUTION, RECURRENCE
from ...core.errors import UnsupportedError
from ...core.sharding import Part, Sharding, Split
from .. import compat
from ..states.slots import SlotState
from .kind import Devices, Replacement


def classes(paths: Iterable[str]) -> Callable[[object], bool]:
    """Whether a layer is of one of vLLM's classes, each as module:name. Nothing is imported: a layer's class has been."""
    names = frozenset(paths)

    def is_one(layer: object) -> bool:
        return isinstance(layer, compat.MambaBase) and any(
            f"{base.__module__}:{base.__qualname__}" in names for base in type(layer).__mro__
        )

    return is_one


def states_of(*names: str) -> Callable[..., tuple[SlotState, ...]]:
    """The states of a layer in vLLM's order and dtypes. names: what they are called, in that order."""

    def states(name: str, layer: Any, block_size: int) -> tuple[SlotState, ...]:
        each = zip(names, layer.get_state_shape(), layer.get_state_dtype(), strict=True)
        return tuple(SlotState.of(name, called, shape, dtype) for called, shape, dtype in each)

    return states


def by_channels(devices: Devices, parts: Sequence[Part] = (), weight: str = "conv1d") -> Mapping[str, Split]:
    """How a convolution and its state lie: by channels. parts: the matrices that its input is made of; none: it is
    one matrix. weight: the convolution's name in the layer."""
    axes, fused = devices.all, tuple(parts)
    return {
        f"{weight}.weight": Split(Sharding((axes, (), ())), 0, fused),
        f"{weight}.bias": Split(Sharding((axes,)), 0, fused),
        CONVOLUTION: Split(Sharding(((), (), axes)), 2, fused),
    }


def by_rows(devices: Devices, parts: Sequence[Part], weight: str) -> Mapping[str, Split]:
    """How a projection lies whose rows are several matrices."""
    fused = tuple(parts)
    return {
        f"{weight}.weight": Split(Sharding((devices.all, ())), 0, fused),
        f"{weight}.bias": Split(Sharding((devices.all,)), 0, fused),
    }


def by_heads(devices: Devices, rank: int) -> Mapping[str, Split]:
    """How the state [slots, heads, ...] of a recurrence lies, which has `rank` dimensions."""
    return {RECURRENCE: Split(Sharding(((), devices.all, *[()] * (rank - 2))))}


BOTH = states_of(CONVOLUTION, RECURRENCE)


def convolved(layer: Any, values: Tensor, weights: Iterable[Any], activation: str | None = "silu") -> Tensor:
    """The causal convolution of values [T, C] by the layers `weights` of vLLM, side by side, whose weights are [C, 1, K].

    Raises UnsupportedError for an activation that vLLM's own kernel does not know either.
    """
    if activation not in (None, "silu", "swish"):
        raise UnsupportedError(f"{layer.prefix}: a convolution with the activation {activation} is not supported")
    convolutions = list(weights)
    weight = _joined([one.weight.flatten(1) for one in convolutions])
    biases = [one.bias for one in convolutions if one.bias is not None]
    bias = _joined(biases) if biases else None
    return torch.ops.fxhlo.causal_conv1d(values, weight, bias, layer=layer.prefix, silu=activation is not None)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def inlined(module: str, op: str) -> Iterator[Replacement]:
    """vLLM's op `op`, which writes into its arguments where tracing sees nothing, as the Python function that it was made of."""
    found = sys.modules.get(module)
    if found is None:
        return
    function = getattr(found, op)

    @wraps(function)
    def inline(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    inline.op_overloads = list  # type: ignore[attr-defined]  # torch asks every op for them while it makes its table of decompositions
    yield Replacement(torch.ops.vllm, op, inline)
