"""vLLM's indexer of sparse attention (DeepSeek V3.2, GLM-DSA) as one functional op: `fxhlo.lightning_index`.

The indexer chooses which positions the latent attention of its layer, and of the layers after it that have none, attends to. vLLM
writes them into a buffer that the layers share; here they pass through the forward context. Scores are of the model's dtype: the
8-bit keys of vLLM's kernels, and the rotation before them, which changes no product, save memory alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from ....kernels.catalog import register_torch_ops
from ...core.errors import UnsupportedError
from ..compat import get_forward_context
from ..states.latent_kv import LatentKV
from .kind import LayerKind, Replacement, by_linear_layers, replaced_in

MODULE, CACHE = "vllm.model_executor.models.deepseek_v2", "DeepseekV32IndexerCache"
"""vLLM's module with an indexer, which the modules of other models take it from; only those import it."""
SELECTED = "fxhlo_selected_positions"
"""Of vLLM's forward context: what the last indexer chose, int32 [T, count]."""


def forward(
    indexer: Any, hidden_states: torch.Tensor, qr: torch.Tensor, positions: torch.Tensor, rotary_emb: Any
) -> torch.Tensor:
    """hidden_states [T, C], qr [T, Q], positions [T] -> int32 [T, count]; in place of Indexer.forward."""
    heads, size, rotary = indexer.n_head, indexer.head_dim, indexer.rope_dim
    query, _ = indexer.wq_b(qr)
    turned, plain = query.view(-1, heads, size).split([rotary, size - rotary], dim=-1)
    both, _ = indexer.wk_weights_proj(hidden_states)
    key, weights = both.split([size, heads], dim=-1)
    key_turned, key_plain = indexer.k_norm(key).split([rotary, size - rotary], dim=-1)
    turned, key_turned = rotary_emb(positions, turned, key_turned.unsqueeze(1))
    selected = torch.ops.fxhlo.lightning_index(
        torch.cat([turned.reshape(-1, heads, rotary), plain], dim=-1),
        torch.cat([key_turned.reshape(-1, rotary), key_plain], dim=-1),
        weights.float() * (indexer.softmax_scale * indexer.n_head_scale),
        layer=indexer.k_cache.prefix,
        count=min(indexer.topk_tokens, indexer.max_model_len),
    )
    get_forward_context().additional_kwargs[SELECTED] = selected
    return selected


def selected_positions() -> torch.Tensor:
    """What the last indexer before this layer chose."""
    selected = get_forward_context().additional_kwargs.get(SELECTED)
    if selected is None:
        raise UnsupportedError("no indexer ran before the model's first layer with sparse attention")
    return selected


def make_cache(self: Any, head_dim: int, dtype: torch.dtype, prefix: str, cache_config: Any) -> None:
    """In place of DeepseekV32IndexerCache.__init__, which is given bytes: of 8-bit keys, and of a scale for each 128."""
    register_torch_ops()
    scales = head_dim // (128 + 4) * 4
    _made()(self, head_dim - scales, torch.get_default_dtype(), prefix, cache_config)


@cache
def _made() -> Callable[..., None]:
    """The __init__ that `make_cache` stands in for; first called before it does."""
    original: Callable[..., None] = getattr(sys.modules[MODULE], CACHE).__init__
    return original


def replacements() -> Iterator[Replacement]:
    """None where the model has no indexer: then nothing has imported vLLM's."""
    if MODULE in sys.modules:
        _made()
    yield from replaced_in(MODULE, {"Indexer.forward": forward, f"{CACHE}.__init__": make_cache})


def is_index_cache(layer: object) -> bool:
    """Whether the layer caches an indexer's keys."""
    module = sys.modules.get(MODULE)
    return module is not None and isinstance(layer, getattr(module, CACHE))


def states(name: str, layer: Any, block_size: int) -> tuple[LatentKV]:
    """The indexer's keys, one for all its heads, as latents are."""
    return (LatentKV.of(name, block_size=block_size, size=layer.head_dim, dtype=layer.dtype),)


KIND = LayerKind("sparse attention", is_index_cache, states, replacements, splits=by_linear_layers)
