"""vLLM's attention layer as one functional op: `fxhlo.attention`, without a cache and without metadata.

vLLM's attention backend serves here only to put the layer into the graph. passes/fx/paged_attention.py adds the KV cache
and the requests' metadata later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from ....kernels.catalog import register_torch_ops
from ...core.errors import UnsupportedError
from ..compat import (
    Attention,
    AttentionBackend,
    AttentionImpl,
    AttentionLayerBase,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
    get_current_vllm_config_or_none,
    get_forward_context,
)
from ..folder import ModelError
from ..states.paged_kv import PagedKV
from .kind import LayerKind, Replacement, by_linear_layers

if TYPE_CHECKING:
    from ..compat import KVCacheSpec


TYPES = (AttentionType.DECODER, AttentionType.ENCODER_ONLY)
"""Causal with a KV cache, and bidirectional without one."""


class FxhloAttentionBackend(AttentionBackend):
    """The backend's names and supported features, as vLLM queries them."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float32, torch.float16]
    forward_includes_kv_cache_update = True  # otherwise the layer calls a second op to write the cache

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # the name for other backends in vLLM's enum

    @staticmethod
    def get_impl_cls() -> type[FxhloAttention]:
        return FxhloAttention

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return NoMetadata

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: KVCacheSpec | None = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in TYPES

    @classmethod
    def supports_alibi_sqrt(cls) -> bool:
        """True, so that a layer that wants it is refused by name (`FxhloAttention`)."""
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


KEYS_AND_VALUES = "fxhlo_keys_and_values"
"""Of vLLM's forward context: those of each layer that ran, for layers that share them."""


class NoMetadata(AttentionMetadataBuilder):
    """A builder of nothing, which vLLM's variants of attention subclass: the runner makes the step's inputs itself."""

    def build(self, *args: object, **kwargs: object) -> NoReturn:
        raise UnsupportedError("fxhlo's attention has no metadata builder: the runner makes the step's inputs itself")


class FxhloAttention(AttentionImpl):
    """One layer: holds the constants and calls the op."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **others: object,
    ) -> None:
        register_torch_ops()
        config = get_current_vllm_config_or_none()
        answers = (
            config is not None and config.model_config is not None and config.model_config.runner_type != "pooling"
        )
        unknown = sorted(name for name, value in others.items() if value not in (None, False, -1))
        refused = {
            f"attention of type {getattr(attn_type, 'value', attn_type)}": attn_type not in TYPES,
            "bidirectional attention with ALiBi": attn_type == AttentionType.ENCODER_ONLY and alibi_slopes is not None,
            "text generation by an encoder, whose attention is bidirectional": attn_type == AttentionType.ENCODER_ONLY
            and answers,
            f"a KV cache of {kv_cache_dtype}": kv_cache_dtype not in ("auto", "bfloat16", "float16"),
            f"attention with {', '.join(unknown)}": bool(unknown),
        }
        for what, asked in refused.items():
            if asked:
                runner = "use --runner pooling" if "encoder" in what else "serve this model on another platform of vLLM"
                raise UnsupportedError(f"fxhlo does not support {what} yet", next_step=runner)
        if sliding_window is not None and sliding_window < 1:
            raise ModelError(
                f"sliding_window is {sliding_window}, and a token attends at least to itself",
                where="config.json",
                next_step="write null there for attention to all tokens",
            )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.sliding_window = sliding_window or 0
        self.soft_cap = float(logits_soft_cap or 0.0)
        self.alibi_slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self.sinks = sinks
        self.shares_cache_of = kv_sharing_target_layer_name
        self.causal = attn_type != AttentionType.ENCODER_ONLY

    def forward(
        self,
        layer: Any,  # vLLM's Attention; the base class asks for less
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: object,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [T, Hq, D], key [T, Hkv, D], value [T, Hkv, V] -> output [T, Hq, V], written; the cache and the metadata are not read.

        A layer that shares another's cache attends to the other's keys and values; its own, if any, are not used. Values that are
        narrower than keys (MiMo) get zeros up to their width, so that the cache has heads of one size.
        """
        seen = get_forward_context().additional_kwargs.setdefault(KEYS_AND_VALUES, {})
        name = self.shares_cache_of or layer.layer_name
        if self.shares_cache_of is None:
            seen[name] = (key, value)
        key, value = seen[name]
        width = 0 if value is None else value.shape[-1]
        if key is None or not 0 < width <= self.head_size:
            raise UnsupportedError(
                f"{layer.layer_name}: keys and values are not both there with heads of {self.head_size}"
            )
        if width < self.head_size:
            value = torch.nn.functional.pad(value, (0, self.head_size - width))
        attended = torch.ops.fxhlo.attention(
            query,
            key,
            value,
            self.sinks,
            self.alibi_slopes,
            layer=name,
            scale=self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
            chunk=getattr(layer, "attention_chunk_size", 0),
            causal=self.causal,
        )
        return output.copy_(attended[..., :width] if width < self.head_size else attended)


@functools.cache
def _with_our_backend(original: Callable[..., None]) -> Callable[..., None]:
    """`Attention.__init__` that leaves out a backend of vLLM's, which some models choose by themselves (MiMo, where values are narrower than
    keys): it calls a GPU's kernels, and without metadata it answers zeros."""

    @functools.wraps(original)
    def init(self: object, *args: Any, **kwargs: Any) -> None:
        backend = kwargs.get("attn_backend")
        if backend is not None and not issubclass(backend.get_impl_cls(), FxhloAttention):
            kwargs["attn_backend"] = None
        original(self, *args, **kwargs)

    return init


def replacements() -> Iterator[Replacement]:
    """vLLM's layer with our backend, whichever its model asks for."""
    original = Attention.__init__
    yield Replacement(Attention, "__init__", _with_our_backend(getattr(original, "__wrapped__", original)))


def is_attention(layer: object) -> bool:
    """Whether the layer caches keys and values per head."""
    return isinstance(layer, AttentionLayerBase) and hasattr(layer, "num_kv_heads")


def states(name: str, layer: Attention, block_size: int) -> tuple[PagedKV, ...]:
    """The layer's KV cache; none where it shares another layer's, or is an encoder's, which sees a whole request in one step."""
    if layer.kv_sharing_target_layer_name is not None or layer.attn_type == AttentionType.ENCODER_ONLY:
        return ()
    cache = PagedKV.of(
        name,
        block_size=block_size,
        kv_heads=layer.num_kv_heads,
        head_size=layer.head_size,
        dtype=layer.kv_cache_torch_dtype,
        window=layer.sliding_window or 0,
        chunk=getattr(layer, "attention_chunk_size", 0),
    )
    return (cache,)


KIND = LayerKind("attention", is_attention, states, replacements, splits=by_linear_layers)
