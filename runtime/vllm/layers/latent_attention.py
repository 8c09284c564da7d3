"""vLLM's multi-head latent attention (MLA) as one functional op: `fxhlo.latent_attention`.

vLLM's layer projects each head's query into the latents' space, attends to the latents, and projects the result to the heads'
values (`W_UK_T`, `W_UV`: absorbed); for prompts it decompresses keys and values instead. Here the op has both projections, and
its implementations choose the form. passes/fx/latent_attention.py adds the cache later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch

from ....kernels.catalog import register_torch_ops
from ...core.errors import UnsupportedError
from ..compat import AttentionType, MLAAttention, MLAPrefillBackend
from ..states.latent_kv import LatentKV
from .attention import FxhloAttentionBackend
from .kind import LayerKind, Replacement, by_linear_layers
from .sparse_attention import selected_positions


class FxhloLatentBackend(FxhloAttentionBackend):
    """The backend's names and supported features, as vLLM queries them."""

    @classmethod
    def is_mla(cls) -> bool:
        return True

    @staticmethod
    def get_impl_cls() -> type[FxhloLatentAttention]:  # type: ignore[override]  # vLLM reads the attributes below alone
        return FxhloLatentAttention


class FxhloLatentPrefill(MLAPrefillBackend):
    """Stands for the part of vLLM's layer that decompresses prompts, which the replaced forward does not call."""

    @staticmethod
    def get_name() -> str:
        return "FXHLO"

    def __init__(self, **_: object) -> None:
        """Keeps nothing."""

    def run_prefill_new_tokens(self, *_: object, **__: object) -> NoReturn:
        raise UnsupportedError("fxhlo's latent attention decompresses keys and values in its own op")

    run_prefill_context_chunk = run_prefill_new_tokens


class FxhloLatentAttention:
    """What vLLM's layer reads of its backend's implementation; refuses what the op does not do."""

    is_sparse = False
    supports_dense_mha_prefill = True
    dcp_world_size = 1

    def __init__(
        self,
        *,
        alibi_slopes: list[float] | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        **_: object,
    ) -> None:
        register_torch_ops()
        refused = {
            "latent attention with ALiBi": alibi_slopes,
            "latent attention with a soft cap": logits_soft_cap,
            "latent attention that is not causal": attn_type != AttentionType.DECODER,
            "a cache of latents shared between layers": kv_sharing_target_layer_name,
            f"a cache of latents in {kv_cache_dtype}": kv_cache_dtype not in ("auto", "bfloat16", "float16", "float32"),
        }
        for what, asked in refused.items():
            if asked:
                raise UnsupportedError(
                    f"fxhlo does not support {what} yet", next_step="serve this model on another platform of vLLM"
                )

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """No-op: the layer itself makes its two projections."""

    def record_logical_topk_ready(self) -> None:
        """No-op: the selected positions are values of the graph."""


def forward(
    layer: Any,  # vLLM's MLAAttention, which gets its two projections when it has its weights
    q: torch.Tensor,
    kv_c_normed: torch.Tensor,
    k_pe: torch.Tensor,
    output_shape: torch.Size | None = None,
    q_dcp_replicated: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [T, N, P + R], kv_c_normed [T, L], k_pe [T, 1, R] -> [T, N * V]; in place of MLAAttention.forward."""
    values = torch.ops.fxhlo.latent_attention(
        q,
        torch.cat([kv_c_normed, k_pe.flatten(1)], dim=-1),
        layer.W_UK_T,
        layer.W_UV,
        selected_positions() if layer.use_sparse else None,
        layer=layer.layer_name,
        scale=float(layer.scale),
        sliding_window=layer.sliding_window or 0,
    )
    return values.reshape(-1, layer.num_heads * layer.v_head_dim)


def process_weights_after_loading(layer: Any, act_dtype: torch.dtype) -> None:
    """In place of vLLM's: the layer's two projections get memory of their own, and the one that they were made of is freed."""
    _process_weights(layer, act_dtype)
    for name in ("W_UK_T", "W_UV"):
        setattr(layer, name, torch.nn.Parameter(getattr(layer, name).contiguous(), requires_grad=False))
    for name, _ in list(layer.kv_b_proj.named_parameters(recurse=False)):
        setattr(layer.kv_b_proj, name, None)


_process_weights = MLAAttention.process_weights_after_loading


def replacements() -> Iterable[Replacement]:
    yield Replacement(MLAAttention, "forward", forward)
    yield Replacement(MLAAttention, "process_weights_after_loading", process_weights_after_loading)


def is_latent_attention(layer: object) -> bool:
    """Whether the layer caches latents."""
    return isinstance(layer, MLAAttention)


def states(name: str, layer: Any, block_size: int) -> tuple[LatentKV]:
    """The layer's cache of latents."""
    return (LatentKV.of(name, block_size=block_size, size=layer.head_size, dtype=layer.W_UV.dtype),)


KIND = LayerKind("latent attention", is_latent_attention, states, replacements, splits=by_linear_layers)
