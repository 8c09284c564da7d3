"""The only room that uses vLLM's unstable internals, a file for each of vLLM's parts, and the check at start-up that they have not changed.

The other files of this package import vLLM's names from here, except for the base class of the platform (vLLM resolves
the platform while it is itself being imported). docs/vllm_contract.md gives each hook's purpose.
"""

from __future__ import annotations

from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.config.vllm import get_current_vllm_config_or_none
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.rotary_embedding import LinearScalingRotaryEmbedding, YaRNScalingRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding import Phi3LongRoPEScaledRotaryEmbedding as LongRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.deepseek_scaling_rope import DeepseekScalingRotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import (
    get_model_architecture,
    initialize_model,
    process_weights_after_loading,
)
from vllm.utils.torch_utils import set_default_torch_dtype, set_random_seed
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)
from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.single_type_kv_cache_manager import MambaManager
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
    PoolerOutput,
)
from vllm.v1.pool.late_interaction_runner import LateInteractionRunner
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from .building import (
    STATIC_ROTARY,
    expert_layers,
    forget_layers,
    ir_implementations,
    layers_of,
    linear_layers,
    no_comparison_of_heads,
    no_compile,
    no_quantization,
    routed_experts,
    without_layers,
)
from .caches import bytes_of_one_request, cache_groups, kv_cache_config
from .configs import default_sizes, engine_config, engine_config_of, kv_cache_space
from .ending import when_engines_end
from .groups import layers_of_stages, shared, start_hosts, start_one_process
from .hooks import HOOKS, check
from .registry import look_at_models_here, names_of_class, registered, registered_name
from .sentences import has_activation, kind_of_module, pools_as_asked

__all__ = [
    "EMPTY_MODEL_RUNNER_OUTPUT",
    "HOOKS",
    "STATIC_ROTARY",
    "AsyncModelRunnerOutput",
    "Attention",
    "AttentionBackend",
    "AttentionImpl",
    "AttentionLayerBase",
    "AttentionMetadataBuilder",
    "AttentionType",
    "BlockPool",
    "ChunkedLocalAttentionSpec",
    "CompilationTimes",
    "DeepseekScalingRotaryEmbedding",
    "ForwardContext",
    "FullAttentionSpec",
    "GrammarOutput",
    "KVCacheConfig",
    "KVCacheGroupSpec",
    "KVCacheSpec",
    "KVCacheSpecRegistry",
    "LateInteractionRunner",
    "LinearScalingRotaryEmbedding",
    "LogitsProcessor",
    "LogprobsLists",
    "LogprobsTensors",
    "LongRotaryEmbedding",
    "MLAAttention",
    "MLAAttentionSpec",
    "MLAPrefillBackend",
    "MambaBase",
    "MambaManager",
    "MambaSpec",
    "ModelConfig",
    "ModelRunnerOutput",
    "MultipleOf",
    "ParallelLMHead",
    "Pooler",
    "PoolerOutput",
    "PoolingMetadata",
    "PoolingStates",
    "SchedulerOutput",
    "SlidingWindowSpec",
    "VllmConfig",
    "VocabParallelEmbedding",
    "WorkerBase",
    "YaRNScalingRotaryEmbedding",
    "bytes_of_one_request",
    "cache_groups",
    "check",
    "default_sizes",
    "engine_config",
    "engine_config_of",
    "expert_layers",
    "forget_layers",
    "get_current_vllm_config_or_none",
    "get_forward_context",
    "get_model_architecture",
    "get_model_loader",
    "has_activation",
    "init_logger",
    "initialize_model",
    "ir_implementations",
    "kind_of_module",
    "kv_cache_config",
    "kv_cache_space",
    "layers_of",
    "layers_of_stages",
    "linear_layers",
    "look_at_models_here",
    "names_of_class",
    "no_comparison_of_heads",
    "no_compile",
    "no_quantization",
    "override_forward_context",
    "pools_as_asked",
    "process_weights_after_loading",
    "registered",
    "registered_name",
    "routed_experts",
    "set_current_vllm_config",
    "set_default_torch_dtype",
    "set_random_seed",
    "shared",
    "start_hosts",
    "start_one_process",
    "when_engines_end",
    "without_layers",
]
