"""Reference of `fxhlo.ragged_paged_latent_attention` in eager torch, written for clarity: too large for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..attention.reference import softmax, visible
from ..latent_attention.reference import absorbed, chosen
from ..paged_attention.reference import check_requests, contexts, rows_of, written
from ..spec import Operands


def ragged_paged_latent_attention(
    query: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    selected: torch.Tensor | None = None,
    *,
    scale: float,
    sliding_window: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes this step's latents into the cache, then attends causally to each request's context.

    query [T, N, P + R], latent [T, L + R], w_uk [N, P, L], w_uv [N, L, V]: of what a latent's keys and values are, see
    `latent_attention`; kv_cache [blocks, block_size, L + R]; slot_mapping, block_tables, seq_lens, query_start_loc int32, as of
    `fxhlo.ragged_paged_attention`; selected int32 [T, K] or None: the only positions of its context that a row attends to, each
    at most once and none after its own, then -1.

    Returns the output [T, N, V], zero in rows that belong to no request, and the updated cache.
    """
    kv_cache = written(latent.to(kv_cache.dtype), kv_cache, slot_mapping)
    request, position, alive = rows_of(query.shape[0], seq_lens, query_start_loc)
    context = contexts(kv_cache, block_tables, request).float()
    at_key = torch.arange(context.shape[1], device=query.device)
    seen = visible(position[:, None], at_key[None, :], sliding_window) & alive[:, None]
    seen = seen & (at_key[None, :] < seq_lens.long()[request][:, None])
    if selected is not None:
        seen = seen & chosen(selected, context.shape[1])
    context = torch.where(seen[:, :, None], context, 0.0)  # unused slots may hold anything, even NaN
    scores = torch.einsum("ihd,ijd->hij", absorbed(query, w_uk), context) * scale
    weights = softmax(scores, seen, at_key[None, :] - position[:, None], None, None, 0.0)
    attended = torch.einsum("hij,ijd->ihd", weights, context[:, :, : w_uv.shape[1]])
    output = torch.einsum("ihl,hlv->ihv", attended, w_uv.float())
    return torch.where(alive[:, None, None], output, 0.0).to(query.dtype), kv_cache


def check(
    query: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    *_: torch.Tensor | None,
    sliding_window: int = 0,
    **__: object,
) -> None:
    """Raises IndexError if a request has rows outside the batch, or would read pages outside its block table or the cache."""
    metadata = (block_tables, seq_lens, query_start_loc)
    check_requests("ragged_paged_latent_attention", query.shape[0], kv_cache, *metadata, sliding_window)


def fake(
    query: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    kv_cache: torch.Tensor,
    *_: object,
    **__: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty((*query.shape[:2], w_uv.shape[2])), kv_cache.new_empty(kv_cache.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Minimum (flops, bytes) of any implementation, with a full cache: `work` of `fxhlo.ragged_paged_attention` with one latent
    per token in place of keys and values, and the two projections, in whichever form takes fewer flops. With `selected`, a row
    reads the latents in its own list."""
    named = operands.named
    (rows, heads, query_size), cache, w_uv = named["query"].shape, named["kv_cache"], named["w_uv"]
    (blocks, block_size, size), (_, latent_size, value_size) = cache.shape, w_uv.shape
    projections = heads * latent_size * (query_size - size + latent_size + value_size)
    requests, pages = named["block_tables"].shape
    each = max(rows / requests, 1.0)  # rows per request
    requests = min(requests, rows)
    context = min(blocks / requests, pages) * block_size
    window = attributes.get("sliding_window") or context
    seen = min(max(context - (each - 1) / 2, 1.0), window)
    read = requests * min(context, window + each - 1)
    if "selected" in named:
        seen = min(seen, named["selected"].shape[1])
        read = min(read, rows * seen)
    scored = rows * heads * seen
    flops = 2.0 * min(
        rows * projections + scored * (size + latent_size), read * projections + scored * (query_size + value_size)
    )
    return flops, (read + rows) * size * cache.dtype.itemsize + projections * w_uv.dtype.itemsize
