"""Cases of `fxhlo.ragged_paged_attention`: head sizes, groups, page sizes, dtypes and masks of served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

INT32, FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)
DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": FLOAT32, "int8": np.dtype(np.int8),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip


def specs(
    tokens: int, heads: int, kv_heads: int, head_size: int, block_size: int, requests: int, pages: int,
    *, dtype: str = "bfloat16", cache: str = "", blocks: int = 0, extras: tuple[str, ...] = (),
) -> dict[str, TensorSpec]:  # fmt: skip
    """Operands by name; `extras` names the optional ones to include. `blocks`: blocks of the cache (0: as many as the tables can address)."""
    row = DTYPES[dtype]
    shape = (blocks or requests * pages + 1, block_size, 2 * kv_heads, head_size)
    operands = {
        "query": TensorSpec((tokens, heads, head_size), row),
        "key": TensorSpec((tokens, kv_heads, head_size), row),
        "value": TensorSpec((tokens, kv_heads, head_size), row),
        "kv_cache": TensorSpec(shape, DTYPES[cache or dtype]),
        "slot_mapping": TensorSpec((tokens,), INT32),
        "block_tables": TensorSpec((requests, pages), INT32),
        "seq_lens": TensorSpec((requests,), INT32),
        "query_start_loc": TensorSpec((requests + 1,), INT32),
    }
    sizes = {"sinks": heads, "alibi_slopes": heads, "k_scale": kv_heads, "v_scale": 1}
    return operands | {name: TensorSpec((sizes[name],), FLOAT32) for name in sizes if name in extras}


def values(
    operands: Mapping[str, TensorSpec], lengths: list[tuple[int, int]]
) -> Callable[..., Mapping[str, np.ndarray]]:
    """Generates a batch of requests, given as (tokens before this step, tokens in this step), on shuffled pages."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        made = {}
        for name, spec in operands.items():
            numbers = rng.standard_normal(spec.shape, np.float32)
            if name == "kv_cache" and spec.dtype == np.int8:
                numbers *= 50
            made[name] = (abs(numbers) + 0.1 if "scale" in name else numbers).astype(spec.dtype)
        blocks, block_size = operands["kv_cache"].shape[:2]
        requests, pages = operands["block_tables"].shape
        tables = rng.permutation(np.arange(blocks))[: requests * pages].reshape(requests, pages)
        rows = [done + at for done, new in lengths for at in range(new)]
        owner = [request for request, (_, new) in enumerate(lengths) for _ in range(new)]
        slots = np.full(operands["slot_mapping"].shape, -1)
        at = np.array(rows, int)
        slots[: len(rows)] = tables[np.array(owner, int), at // block_size] * block_size + at % block_size
        padding = [(0, 0)] * (requests - len(lengths))
        starts = np.cumsum([0, *(new for _, new in [*lengths, *padding])])
        made |= {"slot_mapping": slots, "block_tables": tables, "query_start_loc": starts}
        made["seq_lens"] = np.array([done + new for done, new in [*lengths, *padding]])
        return {name: array.astype(operands[name].dtype) for name, array in made.items()}

    return make


def case(
    name: str, operands: dict[str, TensorSpec], lengths: list[tuple[int, int]] | None = None, **attributes: Any
) -> Case:
    head_size = operands["query"].shape[2]
    given = {"scale": head_size**-0.5, "sliding_window": 0, "soft_cap": 0.0, "chunk": 0} | attributes
    exact = operands["query"].dtype == FLOAT32
    return Case(name, operands, given, values(operands, lengths) if lengths else None, 2e-5 if exact else 2e-2)


MIXED = [(40, 1), (0, 21), (5, 12), (100, 1)]


def cases() -> tuple[Case, ...]:
    scales = ("k_scale", "v_scale")
    made = [
        case("decode, 32 heads of 128 on 8, pages of 16", specs(64, 32, 8, 128, 16, 64, 128)),
        case("prefill, 32 heads of 128 on 8, pages of 16", specs(1024, 32, 8, 128, 16, 8, 128)),
        case("prefill, 64 heads of 128 on 8, pages of 32", specs(512, 64, 8, 128, 32, 16, 64)),
        case("decode, 8 heads of 128 on 1, pages of 64", specs(64, 8, 1, 128, 64, 64, 32)),
        case("decode, 32 heads of 128 on 32, pages of 16", specs(16, 32, 32, 128, 16, 16, 64)),
    ]
    for head_size in (64, 80, 96, 112, 128, 192, 256):
        operands = specs(48, 8, 2, head_size, 16, 6, 10)
        made.append(case(f"mixed, 8 heads of {head_size} on 2, pages of 16", operands, MIXED))
    for block_size in (8, 32, 64, 128, 256):
        operands = specs(48, 8, 4, 128, block_size, 6, -(-160 // block_size))
        made.append(case(f"mixed, 8 heads of 128 on 4, pages of {block_size}", operands))
    for cache in ("float8_e4m3fn", "float8_e5m2", "int8"):
        for heads, kv_heads in ((8, 2), (4, 1)):
            operands = specs(48, heads, kv_heads, 128, 32, 6, 5, cache=cache, extras=scales)
            made.append(case(f"mixed, {cache} cache, {heads} heads of 128 on {kv_heads}", operands, MIXED))
    for heads, kv_heads in ((4, 1), (6, 3), (14, 2), (12, 12)):
        operands = specs(48, heads, kv_heads, 64, 16, 6, 10)
        made.append(case(f"mixed, {heads} heads of 64 on {kv_heads}", operands))
    return (
        *made,
        case("mixed, float32", specs(48, 8, 2, 128, 16, 6, 10, dtype="float32"), MIXED),
        case(
            "mixed, float32, int8 cache", specs(48, 8, 2, 64, 16, 6, 10, dtype="float32", cache="int8", extras=scales)
        ),
        case("mixed, float32, bfloat16 cache", specs(48, 8, 2, 128, 16, 6, 10, dtype="float32", cache="bfloat16")),
        case("mixed, sliding window", specs(48, 8, 2, 128, 16, 6, 10), MIXED, sliding_window=24),
        case("mixed, chunks", specs(48, 8, 2, 128, 16, 6, 10), MIXED, chunk=32),
        case("mixed, soft cap", specs(48, 8, 4, 256, 16, 6, 10), soft_cap=50.0),
        case("mixed, sinks", specs(48, 8, 1, 64, 16, 6, 10, extras=("sinks",)), MIXED, sliding_window=128),
        case("mixed, ALiBi", specs(48, 12, 12, 64, 16, 6, 10, extras=("alibi_slopes",)), MIXED),
        case("one row", specs(1, 32, 8, 128, 16, 1, 64)),
    )
