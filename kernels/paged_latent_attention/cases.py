"""Cases of `fxhlo.ragged_paged_latent_attention`: heads and latent sizes of served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..paged_attention.cases import DTYPES, FLOAT32, INT32, MIXED
from ..paged_attention.cases import values as paged_values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, heads: int, size: int, block_size: int, requests: int, pages: int,
    *, dtype: str = "bfloat16", blocks: int = 0, selected: int = 0,
) -> dict[str, TensorSpec]:  # fmt: skip
    """Operands by name. size: of a latent with its rotary part. blocks: of the cache (0: as many as the tables can address)."""
    row = DTYPES[dtype]
    operands = {
        "query": TensorSpec((tokens, heads, size), row),
        "latent": TensorSpec((tokens, size), row),
        "kv_cache": TensorSpec((blocks or requests * pages + 1, block_size, size), row),
        "slot_mapping": TensorSpec((tokens,), INT32),
        "block_tables": TensorSpec((requests, pages), INT32),
        "seq_lens": TensorSpec((requests,), INT32),
        "query_start_loc": TensorSpec((requests + 1,), INT32),
    }
    return operands | ({"selected": TensorSpec((tokens, selected), INT32)} if selected else {})


def values(
    operands: Mapping[str, TensorSpec], lengths: list[tuple[int, int]]
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """As of `fxhlo.ragged_paged_attention`; each row selects positions of its own context at random."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        made = dict(paged_values(operands, lengths)(rng))
        if "selected" in operands:
            selected = np.full(operands["selected"].shape, -1, np.int32)
            positions = [done + at for done, new in lengths for at in range(new)]
            for row, position in enumerate(positions):
                some = rng.permutation(position + 1)[: selected.shape[1]]
                selected[row, : len(some)] = np.sort(some)
            made["selected"] = selected
        return made

    return make


def case(
    name: str, operands: dict[str, TensorSpec], value_size: int, lengths: list[tuple[int, int]] | None = None,
    *, sliding_window: int = 0,
) -> Case:  # fmt: skip
    attributes = {
        "value_size": value_size, "scale": operands["query"].shape[2] ** -0.5, "sliding_window": sliding_window,
    }  # fmt: skip
    exact = operands["query"].dtype == FLOAT32
    return Case(name, operands, attributes, values(operands, lengths) if lengths else None, 2e-5 if exact else 2e-2)


def cases() -> tuple[Case, ...]:
    models = [
        case(f"{what}, {heads} heads of {value_size} + {rotary} ({model})", specs(*sizes), value_size)
        for model, heads, value_size, rotary in (
            ("DeepSeek-V2-Lite", 16, 512, 64), ("GLM-4.7-Flash", 20, 512, 64), ("Kimi-K2", 64, 512, 64),
            ("DeepSeek-V2, V3", 128, 512, 64), ("MiniCPM3", 40, 256, 32),
        )
        for what, sizes in (
            ("decode", (64, heads, value_size + rotary, 16, 64, 128)),
            ("prefill", (1024, heads, value_size + rotary, 16, 8, 128)),
        )
    ]  # fmt: skip
    return (
        *models,
        case("decode, 16 heads of 512 + 64, pages of 64", specs(64, 16, 576, 64, 64, 32), 512),
        case("one row, 16 heads of 512 + 64", specs(1, 16, 576, 16, 1, 64), 512),
        case("mixed, 16 heads of 512 + 64", specs(48, 16, 576, 16, 6, 10), 512, MIXED),
        case("mixed, 5 heads of 256 + 32", specs(48, 5, 288, 16, 6, 10), 256, MIXED),
        case("mixed, 4 heads of 128 + 16", specs(48, 4, 144, 16, 6, 10), 128, MIXED),
        case("mixed, sliding window", specs(48, 4, 576, 16, 6, 10), 512, MIXED, sliding_window=24),
        case("mixed, float32", specs(48, 4, 576, 16, 6, 10, dtype="float32"), 512, MIXED),
        case("mixed, 8 of the context selected", specs(48, 4, 576, 16, 6, 10, selected=8), 512, MIXED),
    )
