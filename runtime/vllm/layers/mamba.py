"""vLLM's Mamba and Mamba 2 mixers: a convolution and a state space as functional ops; projections and norms stay vLLM's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...core.sharding import Part, Sharding, Split
from .kind import Devices, LayerKind, Replacement, replaced_in
from .recurrent import BOTH, by_channels, by_heads, by_rows, classes, convolved, inlined

MIXER = "vllm.model_executor.layers.mamba.mamba_mixer"
MIXER2 = "vllm.model_executor.layers.mamba.mamba_mixer2"


def forward_impl(layer: Any, hidden_states: Tensor, output: Tensor) -> None:
    """hidden_states [T, H] -> output [T, H], written; in place of MambaMixer.forward_impl."""
    values, gate = layer.in_proj(hidden_states)[0].chunk(2, dim=-1)
    values = convolved(layer, values, [layer.conv1d], layer.activation)
    dt, b, c = layer._ssm_transform(values)
    y = torch.ops.fxhlo.selective_scan(
        values, dt.transpose(0, 1), layer.A, b, c, layer.D, layer._time_proj_bias(), layer=layer.prefix
    )
    output.copy_(layer.out_proj(y * functional.silu(gate))[0])


def conv_ssm_forward(layer: Any, projected_states: Tensor, output: Tensor) -> None:
    """projected_states [T, gate | convolution | dt] -> output [T, H * P], written; in place of MambaMixer2's."""
    inner = projected_states[..., layer.tped_intermediate_size :]
    values, dt = inner.split([layer.tped_conv_size, layer.tped_dt_size], dim=-1)
    values = convolved(layer, values, [layer.conv1d], layer.activation)
    x, b, c = layer.split_hidden_states_B_C_fn(values)
    heads = x.unflatten(-1, (-1, layer.head_dim))
    groups = [one.unflatten(-1, (-1, layer.ssm_state_size)) for one in (b, c)]
    y = torch.ops.fxhlo.ssd(heads, dt, layer.A, *groups, layer.D, layer.dt_bias, layer=layer.prefix)
    output.copy_(y.flatten(1))


def replacements() -> Iterable[Replacement]:
    yield from inlined(MIXER, "mamba_mixer")
    yield from inlined(MIXER2, "mamba_mixer2")
    yield from replaced_in(MIXER, {"MambaMixer.forward_impl": forward_impl})
    yield from replaced_in(MIXER2, {"MambaMixer2.conv_ssm_forward": conv_ssm_forward})


def splits(layer: Any, devices: Devices) -> Mapping[str, Split]:
    """By channels, and Mamba 2 by heads, with the groups that they read."""
    if not hasattr(layer, "n_groups"):
        return {"A": Split(Sharding((devices.all, ()))), **by_channels(devices), **by_heads(devices, 3)}
    inner, groups = Part(layer.intermediate_size, devices.all), devices.sharing(layer.n_groups, layer.num_heads)
    convolution = [inner, *[Part(layer.groups_ssm_state_size, groups)] * 2]
    projection = [inner, *convolution, Part(layer.num_heads, devices.all)]
    return {**by_rows(devices, projection, "in_proj"), **by_channels(devices, convolution), **by_heads(devices, 4)}


KIND = LayerKind("mamba", classes([f"{MIXER}:MambaMixer", f"{MIXER2}:MambaMixer2"]), BOTH, replacements, splits)
