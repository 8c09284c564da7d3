"""`fxhlo.attention` on TPU: the flash attention of jax's wheel, which writes no matrix of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import Operands

LEAST, MOST = 128, 512
"""Tokens of a block: a power of two that divides the sequence."""
HEAD_SIZES = (64, 128, 256)


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    query = operands[0]
    tokens, _, size = query.shape
    if len({operand.dtype for operand in operands[:3]}) > 1 or query.dtype.name != "bfloat16":
        return f"the query is {query.dtype}; query, key and value must be bfloat16"
    for name in ("sinks", "alibi_slopes"):
        if name in operands.named and operands.named[name].shape[0]:
            return f"it has {name}"
    if attributes["sliding_window"] or attributes["soft_cap"]:
        return "it has a sliding window or a soft cap"
    if tokens < LEAST or tokens % LEAST:
        return f"{tokens} tokens are no multiple of {LEAST}"
    return None if size in HEAD_SIZES else f"a head size of {size}; the kernel takes 64, 128 and 256"


def attention(
    query: Any, key: Any, value: Any, sinks: Any = None, alibi_slopes: Any = None, *,
    layer: str, scale: float, sliding_window: int, soft_cap: float,
) -> Any:  # fmt: skip
    """Operands and result as in `reference.attention`."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    tokens, heads, _ = query.shape
    block = min(tokens & -tokens, MOST)
    sizes = BlockSizes(block_q=block, block_k_major=block, block_k=block, block_b=1)
    groups = heads // key.shape[1]
    wide = [jnp.repeat(one, groups, axis=1) if groups > 1 else one for one in (key, value)]
    by_head = [jnp.swapaxes(one, 0, 1)[None] for one in (query, *wide)]
    result = flash_attention(*by_head, causal=True, sm_scale=scale, block_sizes=sizes)
    return jnp.swapaxes(result[0], 0, 1)
