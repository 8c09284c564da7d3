"""Reference of `fxhlo.ragged_paged_attention` in eager torch, written for clarity: too slow and too large for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..attention.reference import softmax, visible
from ..spec import Operands


def ragged_paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    chunk: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes this step's keys and values into the cache, then attends causally to each request's context.

    query [T, Hq, D]; key, value [T, Hkv, D]; kv_cache [blocks, block_size, 2 * Hkv, D], the key of head h at 2h, its
    value at 2h + 1; slot_mapping int32 [T], block * block_size + offset (out of range: not written);
    block_tables int32 [R, P]; seq_lens int32 [R], the context length including this step's tokens; query_start_loc int32
    [R + 1], the first row of each request. sinks, alibi_slopes [Hq] or None (or empty). k_scale, v_scale float32 [1]
    or [Hkv] or None: the cache holds keys / k_scale and values / v_scale. An 8-bit cache rounds to
    nearest and saturates.

    Returns the output [T, Hq, D], zero in rows that belong to no request, and the updated cache.
    """
    tokens, heads, head_size = query.shape
    pairs = kv_cache.shape[2]
    stored = [_stored(key, k_scale, kv_cache.dtype), _stored(value, v_scale, kv_cache.dtype)]
    kv_cache = written(torch.stack(stored, dim=2).reshape(tokens, pairs, head_size), kv_cache, slot_mapping)
    request, position, alive = rows_of(tokens, seq_lens, query_start_loc)
    context = contexts(kv_cache, block_tables, request)
    at_key = torch.arange(context.shape[1], device=query.device)
    groups = heads // (pairs // 2)
    keys = _read(context[:, :, 0::2], k_scale).repeat_interleave(groups, dim=2)
    values = _read(context[:, :, 1::2], v_scale).repeat_interleave(groups, dim=2)
    seen = (
        visible(position[:, None], at_key[None, :], sliding_window, chunk)
        & alive[:, None]
        & (at_key[None, :] < seq_lens.long()[request][:, None])
    )
    keys = torch.where(seen[:, :, None, None], keys, 0.0)  # unused slots may hold anything, even NaN
    values = torch.where(seen[:, :, None, None], values, 0.0)
    scores = torch.einsum("ihd,ijhd->hij", query.float(), keys) * scale
    weights = softmax(scores, seen, at_key[None, :] - position[:, None], sinks, alibi_slopes, soft_cap)
    output = torch.einsum("hij,ijhd->ihd", weights, values)
    return torch.where(alive[:, None, None], output, 0.0).to(query.dtype), kv_cache


def rows_of(
    tokens: int, seq_lens: torch.Tensor, query_start_loc: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(request [T], position in its context [T], whether it belongs to a request bool [T]) of each row of a batch."""
    at_token = torch.arange(tokens, device=seq_lens.device)
    ends, starts = query_start_loc[1:].long(), query_start_loc[:-1].long()
    request = (at_token[:, None] >= ends[None, :]).sum(dim=1).clamp(max=seq_lens.shape[0] - 1)
    position = seq_lens.long()[request] - (ends - starts)[request] + at_token - starts[request]
    return request, position, at_token < ends[-1]


def contexts(cache: torch.Tensor, block_tables: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
    """What the cache [blocks, block_size, ...] holds of each row's request: [T, P * block_size, ...]."""
    return cache[block_tables.long().clamp(0, cache.shape[0] - 1)[request]].flatten(1, 2)


def check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    *_: torch.Tensor | None,
    sliding_window: int,
    chunk: int = 0,
    **__: object,
) -> None:
    """Raises IndexError if a request has rows outside the batch, or would read pages outside its block table or the cache."""
    metadata = (block_tables, seq_lens, query_start_loc)
    check_requests("ragged_paged_attention", query.shape[0], kv_cache, *metadata, sliding_window, chunk)


def check_requests(
    kernel: str,
    tokens: int,
    cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    sliding_window: int = 0,
    chunk: int = 0,
) -> None:
    """`check` for any kernel over a batch of `tokens` rows and a paged cache [blocks, block_size, ...]."""
    (blocks, block_size), pages = cache.shape[:2], block_tables.shape[1]
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    if starts and starts[0] != 0:
        raise IndexError(f"{kernel}: query_start_loc begins at {starts[0]}, not at 0")
    for request, (begin, end, length) in enumerate(zip(starts, starts[1:], lengths, strict=False)):
        where = f"{kernel}: request {request}"
        if not 0 <= begin <= end <= tokens:
            raise IndexError(f"{where}: rows {begin} to {end} of query_start_loc are not in a batch of {tokens}")
        if begin == end or length <= 0:
            continue
        if length > pages * block_size:
            raise IndexError(f"{where}: seq_lens is {length}, its block table holds {pages * block_size} tokens")
        position = max(0, length - (end - begin))
        first = max(0, position - sliding_window + 1) if sliding_window > 0 else 0
        first = max(first, position - position % chunk) if chunk > 0 else first
        for page in range(first // block_size, (length - 1) // block_size + 1):
            block = int(block_tables[request, page])
            if not 0 <= block < blocks:
                raise IndexError(f"{where}: entry {page} of its block table is {block}, the cache has {blocks} blocks")


def _stored(new: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values [T, Hkv, D], scaled and converted to the cache's dtype."""
    if scale is not None:
        new = new.float() / scale.reshape(-1, 1)
    if dtype.itemsize == 1:
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        new = new.float() if dtype.is_floating_point else new.float().round()
        new = new.clamp(limits.min, limits.max)
    return new.to(dtype)


def _read(cached: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Cached keys or values [..., Hkv, D], unscaled, in float32."""
    return cached.float() if scale is None else cached.float() * scale.reshape(-1, 1)


def written(new: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor) -> torch.Tensor:
    """The cache [blocks, block_size, ...] with `new` [T, ...]; tokens without a slot go to an extra row past the end, which is dropped."""
    slots = cache.shape[0] * cache.shape[1]
    flat = torch.cat([cache.flatten(0, 1), cache.new_zeros(1, *cache.shape[2:])])
    inside = (slot_mapping >= 0) & (slot_mapping < slots)
    target = torch.where(inside, slot_mapping.long(), slots)
    return flat.index_put((target,), new)[:slots].reshape(cache.shape)


def fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), kv_cache.new_empty(kv_cache.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Minimum (flops, bytes) of any implementation, with a full cache.

    Keys and values of every context are read once, this step's are written; rows are distributed evenly over requests.
    Context lengths are data, so they are assumed to fill the cache: blocks / requests pages, but no
    more than a block table holds. A sliding window bounds them for every row.
    """
    named = operands.named
    (rows, heads, head_size), cache = named["query"].shape, named["kv_cache"]
    blocks, block_size, pairs, _ = cache.shape
    requests, pages = named["block_tables"].shape
    each = max(rows / requests, 1.0)  # rows per request
    requests = min(requests, rows)
    context = min(blocks / requests, pages) * block_size
    chunk = attributes.get("chunk") or 2 * context  # a row sees half of its chunk on average
    window = min(attributes["sliding_window"] or context, chunk / 2)
    seen = min(
        max(context - (each - 1) / 2, 1.0), window
    )  # average number of keys that a row attends to, itself included
    read = min(context, window + each - 1)
    flops = 4.0 * rows * heads * head_size * seen
    return flops, (requests * read + rows) * pairs * head_size * cache.dtype.itemsize
