"""vLLM's cache groups, and the bytes of their blocks."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
from vllm.v1.attention.backends import utils as attention_utils
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec


def cache_groups(vllm_config: VllmConfig, specs: Mapping[str, KVCacheSpec]) -> list[KVCacheGroupSpec]:
    """The groups of layers whose blocks vLLM's cache manager will assign together. specs: of each layer."""
    if vllm_config.cache_config.kv_cache_layout is None:  # there is no engine core, which would choose one
        supported = attention_utils.get_supported_kv_cache_layouts(get_current_attn_backends(vllm_config))
        attention_utils.resolve_kv_cache_layout(vllm_config, [[layout.name for layout in supported]], specs.values())
    return kv_cache_utils.get_kv_cache_groups(vllm_config, dict(specs))


def bytes_of_one_request(vllm_config: VllmConfig, groups: list[KVCacheGroupSpec]) -> tuple[int, int]:
    """(bytes of one block in all layers, bytes that a request of the maximum length needs)."""
    if not groups:
        return 0, 0
    block = kv_cache_utils._pool_bytes_per_block(vllm_config, groups)
    return block, kv_cache_utils._max_memory_usage_bytes_from_groups(vllm_config, groups)


def kv_cache_config(vllm_config: VllmConfig, specs: Mapping[str, KVCacheSpec], available: int) -> KVCacheConfig:
    """What vLLM's engine core makes of the layers' specs and of the bytes for their caches: the number of blocks, and the groups."""
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    register_all_kvcache_specs(vllm_config)
    cache_groups(vllm_config, specs)  # chooses a layout where nobody has
    (made,) = kv_cache_utils.get_kv_cache_configs(vllm_config, [dict(specs)], [available])
    return made
