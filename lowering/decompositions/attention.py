"""Decomposes `aten.scaled_dot_product_attention`, with as little memory traffic as possible, and flex_attention.

torch's decomposition scales queries and keys, and repeats the keys and values of grouped heads; a compiler then writes these
copies to memory. Here the query rows of one group share one matmul with the group's keys, the scale is applied to the scores as they
are computed, and fully masked rows need no extra pass over the scores. Measured with libtpu for v5e and v6e: `make bench BENCH="--only tpu"`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log
from typing import Any

import torch
from torch import Tensor

from ...passes.torch_private import (
    fused_sdp_choice,
    guard_or_false,
    guarding_hint_or_throw,
    has_guarding_hint,
    indices_by_tensor,
    is_contiguous_or_false,
    vmap_over_scores,
    without_modes,
)

LONG = 512
"""Minimum numbers of query rows and of keys for `fxhlo.attention`: docs/kernels_considered.md."""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """query [..., Hq, L, E], key [..., Hk, S, E], value [..., Hk, S, Ev] -> [..., Hq, L, Ev] in the query's dtype.

    Computed in float32, or float64 for float64; a row with no keys, or with all keys masked, is zero, as in torch. Leading dimensions are broadcast.
    Returns NotImplemented for nested tensors and integers.
    Source: the ATen schema, Vaswani et al. 2017 section 3.2.1, and Ainslie et al. 2023 for grouped heads.
    """
    if query.is_nested or not query.is_floating_point():
        return NotImplemented
    if not _is_grouped(query, key, value, enable_gqa):
        return _broadcast(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if guard_or_false(key.shape[-2] == 0):
        return query.new_zeros([*query.shape[:-1], value.shape[-1]])
    side_by_side = _gives_heads_side_by_side(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    heads, kv_heads = query.shape[-3], key.shape[-3]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is None and not dropout_p and _is_long(query, key, value, is_causal):
        return _in_torch_order(_composite(query, key, value, is_causal, scale), side_by_side)
    group, rows, keys = heads // kv_heads, query.shape[-2], key.shape[-2]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch = query.shape[:-3]
    together = query.to(wide).reshape(*batch, kv_heads, group * rows, query.shape[-1])
    scores = (together @ key.to(wide).transpose(-1, -2)) * scale
    scores = scores.reshape(*batch, kv_heads, group, rows, keys)
    if is_causal:
        attn_mask = torch.ones((rows, keys), dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        mask = _by_group(attn_mask, kv_heads, group)
        scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    weights = _softmax(scores, masked=attn_mask is not None)
    if dropout_p:
        weights = torch.ops.aten.native_dropout.default(weights, dropout_p, True)[0]
    output = weights.reshape(*batch, kv_heads, group * rows, keys) @ value.to(wide)
    return _in_torch_order(output.reshape(*batch, heads, rows, value.shape[-1]).to(query.dtype), side_by_side)


def _is_grouped(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether only KV heads are broadcast: one KV head for all query heads, or one per group of them."""
    if query.ndim < 3 or not query.ndim == key.ndim == value.ndim:
        return False
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if value.shape[-3] != kv_heads or not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        return False
    return heads == kv_heads or kv_heads == 1 or (enable_gqa and heads % kv_heads == 0)


def _broadcast(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Attention of operands whose leading dimensions differ or are missing: broadcasts them as matmul does."""
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (one.repeat_interleave(heads // one.shape[-3], -3) for one in (key, value))
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query, key, value = (one.expand(*(lead or [1]), *one.shape[-2:]) for one in (query, key, value))
    attended = scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return attended.reshape(*lead, *attended.shape[-2:])


def _is_long(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> bool:
    """Whether to emit `fxhlo.attention`, whose flash-attention kernels do not write the scores to memory.

    Only for bfloat16, the dtype of those kernels, and static sizes, by which an implementation is chosen.
    """
    sizes = (*query.shape, *key.shape, *value.shape)
    static = all(isinstance(size, int) for size in sizes)
    if query.dtype != torch.bfloat16 or {key.dtype, value.dtype} != {query.dtype} or not static:
        return False
    rows, keys = query.shape[-2], key.shape[-2]
    same = query.shape[:-3] == key.shape[:-3] == value.shape[:-3] and query.shape[-1] == value.shape[-1]
    return same and min(rows, keys) >= LONG and (rows == keys or not is_causal)


def _composite(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> Tensor:
    """Calls `fxhlo.attention` with batch and heads as one dimension; head h still attends to KV head h // group of its sequence."""
    rows = [one.reshape(-1, *one.shape[-2:]).transpose(0, 1) for one in (query, key, value)]
    attended = torch.ops.fxhlo.attention(
        *rows, None, None, layer="", scale=scale, sliding_window=0, soft_cap=0.0, causal=is_causal
    )
    return attended.transpose(0, 1).reshape(query.shape)


def _gives_heads_side_by_side(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> bool:  # fmt: skip
    """Whether torch's result has strides of [N, L, H, E]: so does the query, and torch selects its CPU flash attention.

    torch is asked for its choice of kernel with real tensors, each one row expanded to the shape: with fake ones it never selects flash.
    """
    operands = (query, key, value, *([] if attn_mask is None else [attn_mask]))
    if query.ndim != 4 or any(not has_guarding_hint(size) for one in operands for size in one.shape):
        return False
    if is_contiguous_or_false(query) or not is_contiguous_or_false(query.transpose(1, 2)):
        return False
    with without_modes(), torch.no_grad():
        choice = fused_sdp_choice(
            _row(query), _row(key), _row(value), None if attn_mask is None else _row(attn_mask),
            dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
    return choice == FLASH


FLASH = 1
"""torch.nn.attention.SDPBackend.FLASH_ATTENTION"""


def _row(tensor: Tensor) -> Tensor:
    """A real tensor with the sizes of a fake one, all rows in the same memory; rows are contiguous if the fake tensor's are."""
    sizes = [guarding_hint_or_throw(size) for size in tensor.shape]
    step = 1 if tensor.ndim == 0 or guard_or_false(tensor.stride(-1) == 1) else 2
    row = torch.empty([step * size for size in sizes[-1:]], dtype=tensor.dtype)
    return (row[::step] if sizes else row).expand(sizes)


def _in_torch_order(attended: Tensor, side_by_side: bool) -> Tensor:
    """Gives the result the strides that torch's has: the model's view of the transposed result relies on them."""
    return attended.transpose(1, 2).contiguous().transpose(1, 2) if side_by_side else attended


def _softmax(scores: Tensor, *, masked: bool) -> Tensor:
    """Softmax over the keys; with `masked`, a fully masked row is zero.

    Written as a maximum and a sum over the scores, which a compiler computes in one pass, and an elementwise function, which it fuses
    into the matmul. Fully masked rows are detected from the maximum and the sum; `_safe_softmax` reads all scores once more.
    """
    highest = scores.amax(-1, keepdim=True)
    if masked:
        highest = torch.where(highest == -torch.inf, 0.0, highest)
    powers = torch.exp(scores - highest)
    total = powers.sum(-1, keepdim=True)
    if masked:
        total = torch.where(total == 0.0, 1.0, total)
    return powers / total


def _by_group(mask: Tensor, kv_heads: int, group: int) -> Tensor:
    """Splits the mask's head dimension into (KV heads, group); a mask without that dimension applies to all heads."""
    if mask.ndim < 3:
        return mask
    if mask.shape[-3] == 1:
        return mask.unsqueeze(-3)
    return mask.reshape(*mask.shape[:-3], kv_heads, group, *mask.shape[-2:])


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Any,
    score_buffers: tuple[Any, ...] = (),
    mask_buffers: tuple[Any, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """query [B, Hq, L, E], key and value [B or 1, Hk, S, E] -> (result [B, Hq, L, E], log2 of the sums and maxima [B, Hq, L]).

    As torch's eager implementation: score_mod and the mask function (the last item of block_mask) take one element and are vmapped
    over all of them. The block mask's tables are ignored: they only tell a kernel which blocks it may skip.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1).expand(query.shape[0], query.shape[1], -1, -1) for x in (key, value))
    scores = (query.to(wide) @ key.to(wide).mT) * scale
    places = [torch.arange(size) for size in scores.shape]
    with indices_by_tensor():
        changed = vmap_over_scores(score_mod, (0,), len(score_buffers))(scores, *places, *score_buffers)
        seen = vmap_over_scores(block_mask[-1], (), len(mask_buffers))(*places, *mask_buffers)
    scores = torch.where(seen, changed.to(wide), -inf)
    sums = torch.where((scores == -inf).all(-1), -inf, scores.logsumexp(-1))
    weights = torch.ops.aten._safe_softmax.default(scores, -1).to(query.dtype)
    return weights @ value.to(query.dtype), sums / log(2), scores.amax(-1) / log(2)
