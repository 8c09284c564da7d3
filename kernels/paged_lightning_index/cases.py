"""Cases of `fxhlo.ragged_paged_lightning_index`: DeepSeek-V3.2's indexer, and small ones that are compared."""

from __future__ import annotations

from ..paged_attention.cases import DTYPES, INT32, MIXED, values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, heads: int, size: int, block_size: int, requests: int, pages: int, *, dtype: str = "bfloat16"
) -> dict[str, TensorSpec]:
    """Operands by name."""
    row = DTYPES[dtype]
    return {
        "query": TensorSpec((tokens, heads, size), row),
        "key": TensorSpec((tokens, size), row),
        "weights": TensorSpec((tokens, heads), row),
        "kv_cache": TensorSpec((requests * pages + 1, block_size, size), row),
        "slot_mapping": TensorSpec((tokens,), INT32),
        "block_tables": TensorSpec((requests, pages), INT32),
        "seq_lens": TensorSpec((requests,), INT32),
        "query_start_loc": TensorSpec((requests + 1,), INT32),
    }


def cases() -> tuple[Case, ...]:
    small = specs(48, 8, 32, 16, 6, 10, dtype="float32")
    return (
        Case("decode, 64 heads of 128, 2048 chosen", specs(32, 64, 128, 64, 32, 64), {"count": 2048}),
        Case("prefill, 64 heads of 128, 2048 chosen", specs(512, 64, 128, 64, 4, 64), {"count": 2048}),
        Case("mixed, 8 heads of 32, 16 chosen", small, {"count": 16}, values(small, MIXED)),
        Case("mixed, 8 heads of 32, all chosen", small, {"count": 200}, values(small, MIXED)),
    )
