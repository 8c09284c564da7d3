"""One small decoder twice, in JAX and in torch, with the same weights: paged attention on a KV cache, greedy tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import fxhlo.jax
from fxhlo.kernels.catalog import register_torch_ops

HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, VOCABULARY, LAYERS = 4, 2, 16, 64, 61, 2
BLOCKS, BLOCK_SIZE, PAGES, REQUESTS = 12, 16, 4, 3
ATTENTION: dict[str, Any] = {"scale": HEAD_SIZE**-0.5, "sliding_window": 0, "soft_cap": 0.0}
CACHE = (BLOCKS, BLOCK_SIZE, 2 * KV_HEADS, HEAD_SIZE)


def weights(seed: int = 0) -> dict[str, Any]:
    """A pytree of float32 arrays; each matrix as [in, out]."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * rows**-0.5).astype(np.float32)

    layers = [
        {
            "qkv": matrix(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_SIZE), "out": matrix(HEADS * HEAD_SIZE, HIDDEN),
            "up": matrix(HIDDEN, 2 * HIDDEN), "down": matrix(HIDDEN, HIDDEN), "norm": np.ones(HIDDEN, np.float32),
        }
        for _ in range(LAYERS)
    ]  # fmt: skip
    return {"embed": matrix(VOCABULARY, HIDDEN), "layers": layers}


# -- in JAX --------------------------------------------------------------------------------------------------------


def step(
    params: Any, caches: list[Any], token_ids: Any, positions: Any, slot_mapping: Any, block_tables: Any, seq_lens: Any,
    query_start_loc: Any,
) -> tuple[Any, Any, list[Any]]:  # fmt: skip
    """(the next token of each request, the logits, the caches with this step's keys and values)."""
    hidden = params["embed"][token_ids] + positions[:, None] * 0.01
    updated = []
    for layer, cache in zip(params["layers"], caches, strict=True):
        sizes = [HEADS * HEAD_SIZE, (HEADS + KV_HEADS) * HEAD_SIZE]
        q, k, v = jnp.split(_normed(hidden, layer["norm"]) @ layer["qkv"], sizes, axis=-1)
        q, k, v = (part.reshape(len(token_ids), -1, HEAD_SIZE) for part in (q, k, v))
        attended, cache = fxhlo.jax.ragged_paged_attention(
            q, k, v, cache, slot_mapping, block_tables, seq_lens, query_start_loc, **ATTENTION
        )
        updated.append(cache)
        hidden = hidden + attended.reshape(len(token_ids), -1) @ layer["out"]
        gate, up = jnp.split(_normed(hidden, layer["norm"]) @ layer["up"], 2, axis=-1)
        hidden = hidden + (gate / (1 + jnp.exp(-gate)) * up) @ layer["down"]
    logits = fxhlo.jax.select_rows(hidden, query_start_loc[1:] - 1) @ params["embed"].T
    return _greedy(logits), logits, updated


def _normed(hidden: Any, weight: Any) -> Any:
    return hidden * (jnp.mean(hidden * hidden, -1, keepdims=True) + 1e-6) ** -0.5 * weight


def _greedy(logits: Any) -> Any:
    rows = logits.shape[0]
    zeros, ones = jnp.zeros(rows, jnp.float32), jnp.ones(rows, jnp.float32)
    whole = jnp.zeros(rows, jnp.int32)
    seeds = jnp.zeros((rows, 2), jnp.int32)
    return fxhlo.jax.sample(logits, zeros, whole, ones, zeros, seeds, whole)


# -- in torch ------------------------------------------------------------------------------------------------------


class Decoder(torch.nn.Module):
    """The same, with its caches as inputs that it changes in place."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        register_torch_ops()
        self.embed = torch.nn.Parameter(torch.from_numpy(params["embed"]))
        self.layers = torch.nn.ModuleList(
            torch.nn.ParameterDict({key: torch.from_numpy(array) for key, array in layer.items()})
            for layer in params["layers"]
        )

    def forward(
        self, caches: list[torch.Tensor], token_ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor,
        block_tables: torch.Tensor, seq_lens: torch.Tensor, query_start_loc: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        tokens = token_ids.shape[0]
        hidden = self.embed[token_ids] + positions[:, None] * 0.01
        for layer, cache in zip(self.layers, caches, strict=True):
            q, k, v = (self.normed(hidden, layer["norm"]) @ layer["qkv"]).split(
                [HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE], dim=-1
            )
            attended, new = torch.ops.fxhlo.ragged_paged_attention(
                q.reshape(tokens, HEADS, HEAD_SIZE), k.reshape(tokens, KV_HEADS, HEAD_SIZE),
                v.reshape(tokens, KV_HEADS, HEAD_SIZE), cache, slot_mapping, block_tables, seq_lens, query_start_loc,
                None, None, **ATTENTION,
            )  # fmt: skip
            cache.copy_(new)
            hidden = hidden + attended.reshape(tokens, -1) @ layer["out"]
            gate, up = (self.normed(hidden, layer["norm"]) @ layer["up"]).chunk(2, dim=-1)
            hidden = hidden + (gate / (1 + torch.exp(-gate)) * up) @ layer["down"]
        logits = torch.ops.fxhlo.select_rows(hidden, query_start_loc[1:] - 1) @ self.embed.T
        return self.greedy(logits), logits

    @staticmethod
    def normed(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return hidden * (hidden.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5 * weight

    @staticmethod
    def greedy(logits: torch.Tensor) -> torch.Tensor:
        rows = logits.shape[0]
        zeros, ones = torch.zeros(rows), torch.ones(rows)
        whole = torch.zeros(rows, dtype=torch.int32)
        return torch.ops.fxhlo.sample(logits, zeros, whole, ones, zeros, torch.zeros(rows, 2, dtype=torch.int32), whole)


# -- what both are called with -------------------------------------------------------------------------------------


class Batch:
    """REQUESTS requests with pages of their own: gives a step's inputs and takes its tokens."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self.tokens = [list(prompt) for prompt in prompts]
        self.computed = [0] * len(prompts)
        self.computing = self.computed
        pages = np.random.default_rng(1).permutation(BLOCKS)[: REQUESTS * PAGES]
        self.tables = pages.reshape(REQUESTS, PAGES).astype(np.int32)

    def inputs(self, most: Sequence[int] = (PAGES * BLOCK_SIZE,) * REQUESTS) -> dict[str, np.ndarray]:
        """The tokens that are not computed yet, of each request at most so many: the prompts first, one a request after that."""
        ends = [min(len(tokens), done + n) for tokens, done, n in zip(self.tokens, self.computed, most, strict=True)]
        new = [tokens[done:end] for tokens, done, end in zip(self.tokens, self.computed, ends, strict=True)]
        at = [np.arange(done, end) for done, end in zip(self.computed, ends, strict=True)]
        slots = [self.tables[row, one // BLOCK_SIZE] * BLOCK_SIZE + one % BLOCK_SIZE for row, one in enumerate(at)]
        arrays = {
            "token_ids": np.concatenate(new), "positions": np.concatenate(at), "slot_mapping": np.concatenate(slots),
            "block_tables": self.tables, "seq_lens": np.array(ends), "query_start_loc": np.cumsum([0, *map(len, new)]),
        }  # fmt: skip
        self.computing = ends
        return {name: array.astype(np.int32) for name, array in arrays.items()}

    def take(self, tokens: np.ndarray) -> None:
        """The step's tokens: of those requests whose tokens are all computed now."""
        self.computed = self.computing
        for one, done, token in zip(self.tokens, self.computed, tokens, strict=True):
            if done == len(one):
                one.append(int(token))
