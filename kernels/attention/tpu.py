"""`fxhlo.attention` on TPU: JAX's Pallas flash attention, which does not write the scores to memory.

It needs whole blocks of tokens and one of three head sizes; others are padded. Padded rows are dropped, padded keys are masked: they come
after all rows (causal) or have a segment id of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

from ..spec import Operands
from .tuning import HEAD_SIZES, LEAST, PADDED, blocks_of


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    tokens, keys = operands[0].shape[0], operands[1].shape[0]
    for name in ("sinks", "alibi_slopes"):
        if name in operands.named and operands.named[name].shape[0]:
            return f"it has {name}"
    if attributes["sliding_window"] or attributes["soft_cap"] or attributes.get("chunk"):
        return "it has a sliding window, chunks or a soft cap"
    if attributes.get("causal", True) and tokens != keys:
        return f"causal attention of {tokens} tokens on {keys} keys"
    return refusal_of_sizes(operands)


def refusal_of_sizes(operands: Operands) -> str | None:
    """Why `flash` does not take these queries, keys and values; None where it does."""
    query, key = operands[:2]
    (tokens, heads, size), (keys, kv_heads, _) = query.shape, key.shape
    if len({operand.dtype for operand in operands[:3]}) > 1 or query.dtype.name != "bfloat16":
        return f"the query is {query.dtype}; query, key and value must be bfloat16"
    if heads % kv_heads:
        return f"{heads} query heads are no multiple of {kv_heads} KV heads"
    for count in (tokens, keys):
        if count < LEAST or (count % LEAST and count < PADDED):
            return f"{count} tokens are no multiple of {LEAST}, and padding pays from {PADDED} on"
    if size > HEAD_SIZES[-1] or size % 8:
        return f"a head size of {size}; the kernel takes multiples of 8 up to {HEAD_SIZES[-1]}"
    return None


def lower(
    query: Array, key: Array, value: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, *,
    layer: str, scale: float, sliding_window: int, soft_cap: float, causal: bool = True, chunk: int = 0,
) -> Array:  # fmt: skip
    """Operands and result as in `reference.attention`."""
    keys = key.shape[0]
    columns, column_blocks = blocks_of(keys)
    if causal or columns * column_blocks == keys:
        return flash(query, key, value, None, None, scale=scale, causal=causal)
    segments = (jnp.zeros(query.shape[0], jnp.int32), jnp.zeros(keys, jnp.int32))
    return flash(query, key, value, *segments, scale=scale, causal=causal)


def flash(
    query: Array, key: Array, value: Array, rows_of: Array | None, keys_of: Array | None, *, scale: float, causal: bool
) -> Array:
    """query [T, Hq, D], key and value [S, Hkv, D] -> [T, Hq, D]. rows_of int32 [T], keys_of int32 [S]: the segment of each, all at
    least 0; a row attends to keys of its own segment. None: all are one segment, and padded keys come after every row."""
    (tokens, heads, size), (keys, kv_heads, _) = query.shape, key.shape
    wide = next(one for one in HEAD_SIZES if one >= size)
    (rows, row_blocks), (columns, column_blocks) = blocks_of(tokens), blocks_of(keys)
    padded_tokens, padded_keys = rows * row_blocks, columns * column_blocks

    def by_head(array: Array, count: int) -> Array:
        array = jnp.swapaxes(array, 0, 1)[None]
        return jnp.pad(array, ((0, 0), (0, 0), (0, count - array.shape[2]), (0, wide - size)))

    repeated = [jnp.repeat(one, heads // kv_heads, axis=1) if heads > kv_heads else one for one in (key, value)]
    operands = [by_head(query, padded_tokens), *(by_head(one, padded_keys) for one in repeated)]
    segments = None
    if rows_of is not None and keys_of is not None:
        segments = SegmentIds(
            *(
                jnp.pad(one, (0, count - one.shape[0]), constant_values=-1)[None]
                for one, count in ((rows_of, padded_tokens), (keys_of, padded_keys))
            )
        )
    blocks = BlockSizes(block_q=rows, block_k_major=columns, block_k=columns, block_b=1)
    result = flash_attention(*operands, segment_ids=segments, causal=causal, sm_scale=scale, block_sizes=blocks)
    return jnp.swapaxes(result[0, :, :tokens, :size], 0, 1)
