"""The hooks of vLLM that fxhlo uses, and the check at start-up that they have not changed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from typing import Any

from ...core.errors import UnsupportedError
from ..plugin import TRIED, version

HOOKS: dict[str, tuple[str, ...]] = {
    "vllm.platforms.interface:Platform.apply_config_platform_defaults": ("vllm_config",),
    "vllm.platforms.interface:Platform.check_and_update_config": ("vllm_config",),
    "vllm.platforms.interface:Platform.get_attn_backend_cls": ("selected_backend", "attn_selector_config"),
    "vllm.platforms.interface:Platform.update_block_size_for_backend": ("vllm_config",),
    "vllm.platforms.interface:Platform.validate_request": ("processed_inputs", "params"),
    "vllm.v1.worker.worker_base:WorkerBase.__init__": (
        "vllm_config", "local_rank", "rank", "distributed_init_method", "is_driver_worker",
    ),
    "vllm.distributed.parallel_state:init_distributed_environment": ("world_size", "rank", "local_rank", "backend", "timeout"),
    "vllm.distributed.parallel_state:ensure_model_parallel_initialized": (
        "tensor_model_parallel_size", "pipeline_model_parallel_size", "backend",
    ),
    "vllm.distributed.utils:get_pp_indices": ("num_hidden_layers", "pp_rank", "pp_size"),
    "vllm.v1.worker.worker_base:WorkerBase.load_model": ("load_dummy_weights",),
    "vllm.v1.engine.utils:CoreEngineProcManager.shutdown": ("timeout",),
    "vllm.v1.worker.worker_base:WorkerBase.execute_model": ("scheduler_output",),
    "vllm.v1.worker.worker_base:WorkerBase.sample_tokens": ("grammar_output",),
    "vllm.v1.worker.worker_base:CompilationTimes": ("language_model", "encoder"),
    "vllm.v1.attention.backend:AttentionImpl.__init__": (
        "num_heads", "head_size", "scale", "num_kv_heads", "alibi_slopes", "sliding_window", "kv_cache_dtype",
        "logits_soft_cap", "attn_type", "kv_sharing_target_layer_name",
    ),
    "vllm.v1.attention.backend:AttentionImpl.forward": (
        "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output", "output_scale", "output_block_scale",
    ),
    "vllm.model_executor.layers.attention:MLAAttention.forward": ("q", "kv_c_normed", "k_pe", "output_shape", "q_dcp_replicated"),
    "vllm.model_executor.layers.attention:MLAAttention.process_weights_after_loading": ("act_dtype",),
    "vllm.model_executor.models.deepseek_v2:Indexer.forward": ("hidden_states", "qr", "positions", "rotary_emb"),
    "vllm.model_executor.models.deepseek_v2:DeepseekV32IndexerCache.__init__": ("head_dim", "dtype", "prefix", "cache_config"),
    "vllm.platforms.interface:Platform.get_mla_prefill_backend_cls": ("mla_selector_config",),
    "vllm.forward_context:ForwardContext": ("no_compile_layers", "attn_metadata", "slot_mapping"),
    "vllm.model_executor.model_loader.base_loader:_get_online_quantization_config": ("vllm_config",),
    "vllm.model_executor.model_loader.utils:initialize_model": ("vllm_config", "model_config"),
    "vllm.model_executor.model_loader.utils:process_weights_after_loading": ("model", "model_config", "target_device"),
    "vllm.model_executor.models.registry:_run_in_subprocess": ("fn",),
    "vllm.config.model:get_config": ("model", "trust_remote_code", "hf_overrides_fn"),
    "vllm.v1.kv_cache_interface:FullAttentionSpec": ("block_size", "num_kv_heads", "head_size", "dtype"),
    "vllm.v1.kv_cache_interface:SlidingWindowSpec": ("block_size", "num_kv_heads", "head_size", "dtype", "sliding_window"),
    "vllm.v1.kv_cache_interface:ChunkedLocalAttentionSpec": ("attention_chunk_size",),
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec": ("layer_names", "kv_cache_spec"),
    "vllm.v1.core.kv_cache_utils:get_kv_cache_groups": ("vllm_config", "kv_cache_spec"),
    "vllm.v1.core.kv_cache_utils:get_kv_cache_configs": ("vllm_config", "kv_cache_specs", "available_memory"),
    "vllm.v1.core.kv_cache_utils:_pool_bytes_per_block": ("vllm_config",),
    "vllm.v1.core.kv_cache_utils:_max_memory_usage_bytes_from_groups": ("vllm_config", "kv_cache_groups"),
    "vllm.v1.kv_cache_interface:MLAAttentionSpec": ("block_size", "num_kv_heads", "head_size", "dtype"),
    "vllm.v1.kv_cache_interface:MambaSpec": ("shapes", "dtypes", "mamba_cache_mode"),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register": ("kvcache_spec_cls", "manager_class", "uniform_type_base_spec"),
    "vllm.platforms.interface:Platform.register_custom_kv_cache_specs": ("vllm_config",),
    "vllm.v1.core.block_pool:BlockPool.__init__": ("num_gpu_blocks", "enable_caching", "hash_block_size"),
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks": (),
    "vllm.v1.core.block_pool:BlockPool.is_block_writable": ("block",),
    "vllm.v1.core.block_pool:BlockPool.free_blocks": ("ordered_blocks",),
    "vllm.v1.core.block_pool:BlockPool.evict_blocks": ("block_ids",),
    "vllm.v1.core.block_pool:BlockPool.reset_prefix_cache": (),
    "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue.__init__": ("blocks",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks": ("request", "num_computed_tokens"),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.free": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.pop_blocks_for_free": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": ("vllm_config",),
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager.__init__": ("kv_cache_spec", "block_pool"),
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager.get_num_blocks_to_allocate": (
        "request_id", "num_tokens", "new_computed_blocks", "total_computed_tokens", "num_local_computed_tokens", "num_tokens_main_model",
        "apply_admission_cap", "prefill_end",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager.allocate_new_blocks": ("request_id", "num_tokens", "num_tokens_main_model"),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens", "finished_req_ids", "preempted_req_ids", "kv_cache_block_copies",
    ),
    "vllm.v1.core.sched.output:NewRequestData": (
        "req_id", "prompt_token_ids", "sampling_params", "pooling_params", "block_ids", "num_computed_tokens", "prefill_token_ids",
    ),
    "vllm.v1.core.sched.output:CachedRequestData": (
        "req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens",
    ),
    "vllm.v1.core.sched.output:GrammarOutput": ("structured_output_request_ids", "grammar_bitmask"),
    "vllm.v1.outputs:ModelRunnerOutput": (
        "req_ids", "req_id_to_index", "sampled_token_ids", "logprobs", "prompt_logprobs_dict", "pooler_output",
    ),
    "vllm.v1.outputs:AsyncModelRunnerOutput.get_output": (),
    "vllm.model_executor.layers.pooler.abstract:Pooler.forward": ("hidden_states", "pooling_metadata"),
    "vllm.model_executor.layers.pooler.abstract:Pooler.get_pooling_updates": ("task",),
    "vllm.v1.pool.metadata:PoolingMetadata": (
        "prompt_lens", "prompt_token_ids", "prompt_token_ids_cpu", "pooling_params", "pooling_states",
    ),
    "vllm.v1.pool.metadata:PoolingMetadata.build_pooling_cursor": ("num_scheduled_tokens_np", "seq_lens_cpu", "device"),
    "vllm.v1.pool.late_interaction_runner:LateInteractionRunner.postprocess_pooler_output": (
        "raw_pooler_output", "pooling_params", "req_ids", "finished_mask",
    ),
    "vllm.v1.worker.worker_base:WorkerBase.release_late_interaction_query_cache": ("query_keys",),
    "vllm.v1.outputs:LogprobsTensors": ("logprob_token_ids", "logprobs", "selected_token_ranks"),
    "vllm.v1.outputs:LogprobsLists": ("logprob_token_ids", "logprobs", "sampled_token_ranks"),
}  # fmt: skip
"""Hooks that must exist, each with the parameters or fields that fxhlo uses, in this order."""
MODELS = "vllm.model_executor.models.deepseek_v2"
"""The module of HOOKS that only some models import: its hooks are looked at where one has, and again where they are replaced."""


def check() -> None:
    """Raises UnsupportedError with every hook that is missing or has changed; called when a worker starts."""
    if version() not in TRIED:
        raise UnsupportedError(
            f"vLLM {version()} was not tried with fxhlo",
            next_step=f"install vLLM {' or '.join(TRIED)}, or start with VLLM_PLUGINS= for a platform of vLLM's own",
        )
    asked = {hook: names for hook, names in HOOKS.items() if MODELS in sys.modules or not hook.startswith(f"{MODELS}:")}
    wrong = [f"{hook}: {problem}" for hook, names in asked.items() if (problem := _problem(hook, names))]
    if wrong:
        raise UnsupportedError(
            f"this vLLM {version()} is not the one that fxhlo was written for:\n  " + "\n  ".join(wrong),
            next_step="reinstall vLLM; if it is unchanged, report this list",
        )


def _problem(hook: str, names: tuple[str, ...]) -> str | None:
    module, _, path = hook.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            return "is not there"
    if dataclasses.is_dataclass(found):
        have = [field.name for field in dataclasses.fields(found)]
    elif isinstance(found, type):
        have = list(getattr(found, "_fields", ()))
    else:
        have = list(inspect.signature(found).parameters)
    missing = [name for name in names if name not in have]
    if missing:
        return f"lacks {', '.join(missing)}"
    if [name for name in have if name in names] != list(names) and not dataclasses.is_dataclass(found):
        return f"has another order: {', '.join(have)}"
    return None
