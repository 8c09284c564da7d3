"""Reference of `fxhlo.ragged_paged_lightning_index` in eager torch, written for clarity: too large for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..lightning_index.reference import highest
from ..paged_attention.reference import check_requests, contexts, rows_of, written
from ..spec import Operands


def ragged_paged_lightning_index(
    query: torch.Tensor,
    key: torch.Tensor,
    weights: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    *,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes this step's keys into the cache, then chooses among the positions of each request's context.

    query [T, H, D]; key [T, D]; weights [T, H]; kv_cache [blocks, block_size, D]; slot_mapping, block_tables, seq_lens,
    query_start_loc int32, as of `fxhlo.ragged_paged_attention`.

    Returns positions int32 [T, count], as `fxhlo.lightning_index` chooses them, -1 in rows that belong to no request, and the
    updated cache.
    """
    kv_cache = written(key.to(kv_cache.dtype), kv_cache, slot_mapping)
    request, position, alive = rows_of(query.shape[0], seq_lens, query_start_loc)
    keys = contexts(kv_cache, block_tables, request).float()
    seen = (torch.arange(keys.shape[1], device=query.device)[None, :] <= position[:, None]) & alive[:, None]
    keys = torch.where(seen[:, :, None], keys, 0.0)  # unused slots may hold anything, even NaN
    products = torch.einsum("ihd,ijd->ihj", query.float(), keys).relu()
    scores = torch.einsum("ih,ihj->ij", weights.float(), products)
    return highest(torch.where(seen, scores, float("-inf")), count), kv_cache


def check(
    query: torch.Tensor,
    key: torch.Tensor,
    weights: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    **_: object,
) -> None:
    """Raises IndexError if a request has rows outside the batch, or would read pages outside its block table or the cache."""
    metadata = (block_tables, seq_lens, query_start_loc)
    check_requests("ragged_paged_lightning_index", query.shape[0], kv_cache, *metadata)


def fake(
    query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor, kv_cache: torch.Tensor, *_: object, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty((query.shape[0], count), dtype=torch.int32), kv_cache.new_empty(kv_cache.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Minimum (flops, bytes) of any implementation, with a full cache: every key is read once by each request, and scored by each
    of its rows."""
    named = operands.named
    (rows, heads, size), cache = named["query"].shape, named["kv_cache"]
    blocks, block_size, _ = cache.shape
    requests, pages = named["block_tables"].shape
    requests = min(requests, rows)
    context = min(blocks / requests, pages) * block_size
    return 2.0 * rows * heads * (size + 1) * context, (requests * context + rows) * size * cache.dtype.itemsize
