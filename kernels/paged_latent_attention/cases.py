"""Cases of `fxhlo.ragged_paged_latent_attention`: heads and latent sizes of served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..paged_attention.cases import DTYPES, FLOAT32, INT32, MIXED
from ..paged_attention.cases import values as paged_values
from ..spec import Case, TensorSpec


class Sizes(NamedTuple):
    """Of a layer. nope, rotary: the parts of a query; latent, rotary: those of what is cached; value: of a head's value."""

    heads: int
    nope: int
    rotary: int
    latent: int
    value: int


MODELS = {
    "DeepSeek-V2-Lite": Sizes(16, 128, 64, 512, 128),
    "GLM-4.7-Flash": Sizes(20, 192, 64, 512, 256),
    "Kimi-K2": Sizes(64, 128, 64, 512, 128),
    "DeepSeek-V2, V3": Sizes(128, 128, 64, 512, 128),
    "MiniCPM3": Sizes(40, 64, 32, 256, 64),
}


def specs(
    tokens: int, sizes: Sizes, block_size: int, requests: int, pages: int,
    *, dtype: str = "bfloat16", blocks: int = 0, selected: int = 0,
) -> dict[str, TensorSpec]:  # fmt: skip
    """Operands by name. blocks: of the cache (0: as many as the tables can address)."""
    row, (heads, nope, rotary, latent, value) = DTYPES[dtype], sizes
    size = latent + rotary
    operands = {
        "query": TensorSpec((tokens, heads, nope + rotary), row),
        "latent": TensorSpec((tokens, size), row),
        "w_uk": TensorSpec((heads, nope, latent), row),
        "w_uv": TensorSpec((heads, latent, value), row),
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
    """As of `fxhlo.ragged_paged_attention`; projections keep magnitudes, each row selects positions of its own context at random."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        made = dict(paged_values(operands, lengths)(rng))
        for name, axis in (("w_uk", 1), ("w_uv", 1)):
            made[name] = (made[name] * operands[name].shape[axis] ** -0.5).astype(operands[name].dtype)
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
    name: str, operands: dict[str, TensorSpec], lengths: list[tuple[int, int]] | None = None, *, sliding_window: int = 0
) -> Case:
    attributes = {"scale": operands["query"].shape[2] ** -0.5, "sliding_window": sliding_window}
    exact = operands["query"].dtype == FLOAT32
    return Case(name, operands, attributes, values(operands, lengths) if lengths else None, 2e-5 if exact else 2e-2)


def cases() -> tuple[Case, ...]:
    models = [
        case(
            f"{what}, {sizes.heads} heads of {sizes.latent} + {sizes.rotary} ({model})",
            specs(tokens, sizes, 16, requests, 128),
        )
        for model, sizes in MODELS.items()
        for what, tokens, requests in (("decode", 64, 64), ("prefill", 1024, 8))
    ]
    lite = MODELS["DeepSeek-V2-Lite"]
    return (
        *models,
        case("decode, 16 heads of 512 + 64, pages of 64", specs(64, lite, 64, 64, 32)),
        case("one row, 16 heads of 512 + 64", specs(1, lite, 16, 1, 64)),
        case("mixed, 16 heads of 512 + 64", specs(48, lite, 16, 6, 10), MIXED),
        case("mixed, 5 heads of 256 + 32", specs(48, Sizes(5, 64, 32, 256, 64), 16, 6, 10), MIXED),
        case("mixed, 4 heads of 128 + 16", specs(48, Sizes(4, 32, 16, 128, 24), 16, 6, 10), MIXED),
        case("mixed, sliding window", specs(48, Sizes(4, 128, 64, 512, 128), 16, 6, 10), MIXED, sliding_window=24),
        case("mixed, float32", specs(48, Sizes(4, 128, 64, 512, 128), 16, 6, 10, dtype="float32"), MIXED),
        case("mixed, 8 of the context selected", specs(48, Sizes(4, 128, 64, 512, 128), 16, 6, 10, selected=8), MIXED),
    )
