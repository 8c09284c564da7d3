"""vLLM's gated delta nets: Qwen's and OLMo's, whose decay is one number a head, and Kimi's (KDA), with one for each channel of a key.
Their convolution and recurrence become functional ops; projections and norms stay vLLM's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ....passes.fx.recurrent_state import CONVOLUTION
from ...core.sharding import Part, Split
from .kind import Devices, LayerKind, Replacement, replaced_in
from .recurrent import BOTH, by_channels, by_heads, by_rows, classes, convolved, inlined

QWEN = "vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn"
OLMO = "vllm.model_executor.layers.mamba.gdn.olmo_gdn_linear_attn"
KIMI = "vllm.model_executor.layers.mamba.gdn.kimi_gdn_linear_attn"
GLM = "vllm.models.glm5next.common.kda"
BAILING = "vllm.model_executor.models.bailing_moe_v3"


def forward_core(layer: Any, mixed_qkv: Tensor, b: Tensor, a: Tensor, core_attn_out: Tensor) -> None:
    """mixed_qkv [T, 2 * Hk * K + H * V], b and a [T, H] -> core_attn_out [T, H, V], written; in place of `_forward_core`."""
    sizes = [layer.key_dim, layer.key_dim, layer.value_dim]
    heads = [layer.head_k_dim, layer.head_k_dim, layer.head_v_dim]
    decay = -torch.exp(layer.A_log.float()) * functional.softplus(a.float() + layer.dt_bias.float())
    rate = torch.sigmoid(b.float()) * (2.0 if getattr(layer, "allow_neg_eigval", False) else 1.0)
    values = convolved(layer, mixed_qkv, [layer.conv1d], layer.activation)
    core_attn_out.copy_(_delta_rule(layer, values, sizes, heads, decay, rate))


def kimi_forward(layer: Any, mixed_qkv: Tensor, g1: Tensor, g2: Tensor, beta: Tensor, core_attn_out: Tensor) -> None:
    """mixed_qkv [T, 3 * H * K], g1 [1, T, H, K], g2 [T, H, K], beta [1, T, H] -> core_attn_out [1, T, H, K], written; in place of
    KimiGatedDeltaNetAttention._forward."""
    decay = kda_gate(g1[0].flatten(1), layer.A_log, layer.head_dim, layer.dt_bias, lower_bound=layer.gate_lower_bound)
    values = convolved(layer, mixed_qkv, [layer.conv1d])
    attended = _kda(layer, values, decay, torch.sigmoid(beta[0].float()))
    core_attn_out.copy_(layer.o_norm(attended[None], g2))


def glm_forward(layer: Any, qkv_proj_states: Tensor, g1: Tensor, beta: Tensor, core_attn_out: Tensor) -> None:
    """As `kimi_forward`, with a convolution each for queries, keys and values, and without the norm; in place of
    Glm5NextLinearAttention._forward."""
    decay = kda_gate(g1[0].flatten(1), layer.A_log, layer.head_dim, layer.dt_bias, lower_bound=layer.kda_lower_bound)
    values = convolved(layer, qkv_proj_states, [layer.q_conv1d, layer.k_conv1d, layer.v_conv1d])
    core_attn_out.copy_(_kda(layer, values, decay, torch.sigmoid(beta[0].float()))[None])


def bailing_forward(
    layer: Any,
    q_proj_states: Tensor,
    k_proj_states: Tensor,
    v_proj_states: Tensor,
    g1: Tensor,
    beta: Tensor,
    core_attn_out: Tensor,
) -> None:
    """The three [T, H * K], g1 [1, T, H, K] and beta [1, T, H] as the recurrence takes them -> core_attn_out [1, T, H, K], written; in
    place of BailingMoeV3KimiDeltaAttention._forward."""
    values = torch.cat([q_proj_states, k_proj_states, v_proj_states], dim=-1)
    values = convolved(layer, values, [layer.q_conv1d, layer.k_conv1d, layer.v_conv1d])
    core_attn_out.copy_(_kda(layer, values, g1[0], beta[0])[None])


def kda_gate(
    g: Tensor,
    A: Tensor,
    head_k_dim: int,
    g_bias: Tensor | None = None,
    beta: float = 1.0,
    threshold: float = 20.0,
    lower_bound: float | None = None,
) -> Tensor:
    """g [..., H * K] -> the decay's logarithm, float32 [..., H, K]; in place of vLLM's `fused_kda_gate`."""
    raw = g.float() if g_bias is None else g.float() + g_bias.float()
    raw, rate = raw.unflatten(-1, (-1, head_k_dim)), torch.exp(A.float().reshape(-1, 1))
    if lower_bound is None:
        return -rate * functional.softplus(raw, beta, threshold)
    return lower_bound * torch.sigmoid(rate * raw)


def _kda(layer: Any, values: Tensor, decay: Tensor, rate: Tensor) -> Tensor:
    size = values.shape[-1] // 3
    return _delta_rule(layer, values, [size] * 3, [layer.head_dim] * 3, decay, rate)


def _delta_rule(
    layer: Any, values: Tensor, sizes: Sequence[int], heads: Sequence[int], decay: Tensor, rate: Tensor
) -> Tensor:
    """sizes: of queries, keys and values in `values` [T, C]; heads: sizes of a head of each."""
    parts = values.split(list(sizes), dim=-1)
    q, k, v = (part.unflatten(-1, (-1, head)) for part, head in zip(parts, heads, strict=True))
    return torch.ops.fxhlo.gated_delta_rule(
        q, k, v, decay, rate, layer=layer.prefix, scale=heads[0] ** -0.5, l2norm=True
    )


def no_allocator(device: object) -> None:
    """In place of vLLM's `set_triton_allocator`: Triton is not there."""


def fused_loader(dims: Sequence[int], tp_size: int, tp_rank: int) -> Callable[..., None]:
    """The loader of convolutions that are stored one by one into one parameter; in place of OLMo's, which is told which one it gets in
    an argument: vLLM's mapping of names tells it in an attribute of the tensor."""

    def weight_loader(param: Tensor, loaded_weight: Tensor, loaded_shard_id: int | None = None) -> None:
        shard: Any = vars(loaded_weight)["shard_id"] if loaded_shard_id is None else loaded_shard_id
        first = sum(dims[:shard])
        param.data[first : first + dims[shard]].copy_(loaded_weight.view(dims[shard], 1, -1))

    return weight_loader


def replacements() -> Iterable[Replacement]:
    yield from inlined(QWEN, "qwen_gdn_attention_core")
    yield from replaced_in(QWEN, {"QwenGatedDeltaNetAttention._forward_core": forward_core})
    yield from inlined(OLMO, "olmo_hybrid_gdn_full_forward")
    core = "OlmoHybridGatedDeltaNetAttention._forward_core"
    yield from replaced_in(OLMO, {core: forward_core, "set_triton_allocator": no_allocator})
    yield from replaced_in(OLMO, {"_make_fused_conv1d_weight_loader": fused_loader})
    yield from replaced_in(KIMI, {"KimiGatedDeltaNetAttention._forward": kimi_forward})
    yield from replaced_in(GLM, {"Glm5NextLinearAttention._forward": glm_forward})
    yield from inlined(BAILING, "bailing_v3_kda_attention")
    core = "BailingMoeV3KimiDeltaAttention._forward"
    yield from replaced_in(BAILING, {core: bailing_forward, "fused_kda_gate": kda_gate})


def splits(layer: Any, devices: Devices) -> Mapping[str, Split]:
    """By value heads, with the key heads that they read."""
    states = by_heads(devices, 4)
    if not hasattr(layer, "num_v_heads"):
        return {**_kimi_projection(layer, devices), **_kda_convolution(layer, devices), **states}
    shared, own = devices.sharing(layer.num_k_heads, layer.num_v_heads), devices.all
    keys, values = Part(layer.key_dim, shared), Part(layer.value_dim, own)
    found = {**by_channels(devices, [keys, keys, values]), **states}
    if getattr(layer, "gqa_interleaved_layout", False):  # a key head's queries, keys, values and gates lie together
        whole = {name: Split() for name in ("in_proj_qkvz.weight", "in_proj_ba.weight")}
        return found if shared else found | whole
    projection = "in_proj_qkvz" if hasattr(layer, "in_proj_qkvz") else "in_proj_qkvg"
    return {**found, **by_rows(devices, [keys, keys, values, values], projection)}


def _kda_convolution(layer: Any, devices: Devices) -> Mapping[str, Split]:
    """One convolution for queries, keys and values, or one for each, whose weights lie side by side."""
    parts = [Part(layer.head_dim * layer.num_heads, devices.all)] * 3
    found = by_channels(devices, parts)
    if hasattr(layer, "conv1d"):
        return found
    alone = by_channels(devices)["conv1d.weight"]
    return {CONVOLUTION: found[CONVOLUTION], **{f"{name}_conv1d.weight": alone for name in ("q", "k", "v")}}


def _kimi_projection(layer: Any, devices: Devices) -> Mapping[str, Split]:
    """Kimi's fused projection ends in what is small: the gates' inputs, which every device has whole, and padding."""
    projection = getattr(layer, "in_proj_qkvgfab", None)
    if projection is None:
        return {}
    sizes, whole = projection.output_sizes, projection.replicated_shard_id
    rows = [Part(size, () if index == whole or index > 5 else devices.all) for index, size in enumerate(sizes)]
    return by_rows(devices, rows, "in_proj_qkvgfab")


CLASSES = (
    f"{QWEN}:QwenGatedDeltaNetAttention",
    f"{OLMO}:OlmoHybridGatedDeltaNetAttention",
    f"{KIMI}:KimiGatedDeltaNetAttention",
    f"{GLM}:Glm5NextLinearAttention",
    f"{BAILING}:BailingMoeV3KimiDeltaAttention",
)
KIND = LayerKind("gated delta net", classes(CLASSES), BOTH, replacements, splits)
