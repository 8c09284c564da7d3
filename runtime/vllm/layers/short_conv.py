"""vLLM's gated short convolution (LFM2): its convolution as a functional op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ....passes.fx.recurrent_state import CONVOLUTION
from ...core.sharding import Split
from .kind import Devices, LayerKind, Replacement, replaced_in
from .recurrent import by_channels, classes, convolved, states_of

MODULE = "vllm.model_executor.layers.mamba.short_conv"


def forward(layer: Any, hidden_states: Tensor, output: Tensor) -> None:
    """hidden_states [T, H] -> output [T, H], written; in place of ShortConv.forward."""
    b, c, x = layer.in_proj(hidden_states)[0].chunk(3, dim=-1)
    output.copy_(layer.out_proj(c * convolved(layer, b * x, [layer.conv], activation=None))[0])


def replacements() -> Iterable[Replacement]:
    yield from replaced_in(MODULE, {"ShortConv.forward": forward})


def splits(layer: Any, devices: Devices) -> Mapping[str, Split]:
    return by_channels(devices, weight="conv")


KIND = LayerKind("short convolution", classes([f"{MODULE}:ShortConv"]), states_of(CONVOLUTION), replacements, splits)
