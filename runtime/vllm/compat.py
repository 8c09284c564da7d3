"""The only file that uses vLLM's unstable internals, and the check at start-up that they have not changed.

The other files of this package import vLLM's names from here, except for the base class of the platform (vLLM resolves
the platform while it is itself being imported). docs/vllm_contract.md gives each hook's purpose.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.distributed
import vllm.envs as envs
import vllm.ir.ops  # noqa: F401 - fills the registry of IR ops
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.config.vllm import get_current_vllm_config_or_none
from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
    model_parallel_is_initialized,
)
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.ir.op import IrOp
from vllm.logger import init_logger
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.rotary_embedding import (
    Gemma4RotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    NTKScalingRotaryEmbedding,
    RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)
from vllm.model_executor.layers.rotary_embedding import (
    Phi3LongRoPEScaledRotaryEmbedding as LongRotaryEmbedding,
)
from vllm.model_executor.layers.rotary_embedding.deepseek_scaling_rope import DeepseekScalingRotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader import base_loader, get_model_loader
from vllm.model_executor.model_loader.utils import (
    get_model_architecture,
    initialize_model,
    process_weights_after_loading,
)
from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache, Indexer
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype, set_random_seed
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)
from vllm.v1.attention.backends import utils as attention_utils
from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
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

from ..core.errors import FxhloError, UnsupportedError
from .config_fields import complete
from .folder import HEADS, SIZES, ModelError, check_sizes
from .front import told
from .model_imports import without_images
from .plugin import TRIED, version

__all__ = [
    "EMPTY_MODEL_RUNNER_OUTPUT",
    "STATIC_ROTARY",
    "AsyncModelRunnerOutput",
    "AttentionBackend",
    "AttentionImpl",
    "AttentionLayerBase",
    "AttentionMetadataBuilder",
    "AttentionType",
    "ChunkedLocalAttentionSpec",
    "CompilationTimes",
    "DeepseekScalingRotaryEmbedding",
    "DeepseekV32IndexerCache",
    "ForwardContext",
    "FullAttentionSpec",
    "GrammarOutput",
    "Indexer",
    "KVCacheConfig",
    "KVCacheGroupSpec",
    "KVCacheSpec",
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
    "init_logger",
    "initialize_model",
    "ir_implementations",
    "kv_cache_config",
    "kv_cache_space",
    "layers_of",
    "linear_layers",
    "look_at_models_here",
    "no_comparison_of_heads",
    "no_compile",
    "no_quantization",
    "override_forward_context",
    "process_weights_after_loading",
    "registered",
    "registered_name",
    "routed_experts",
    "set_current_vllm_config",
    "set_default_torch_dtype",
    "set_random_seed",
    "start_one_process",
    "without_layers",
]

STATIC_ROTARY = (
    RotaryEmbedding, Gemma4RotaryEmbedding, LinearScalingRotaryEmbedding, Llama3RotaryEmbedding, NTKScalingRotaryEmbedding,
    YaRNScalingRotaryEmbedding, DeepseekScalingRotaryEmbedding,
)  # fmt: skip
"""vLLM's rotary embeddings whose frequencies do not depend on the request's length."""

PLAIN_VARIANTS = {"KimiLinearForCausalLM": "vllm.models.kimi_k3.amd.linear"}
"""Architectures of packages with a variant for each vendor -> the module that is made of vLLM's common layers."""

REGISTRY = {
    "Text generation": "_TEXT_GENERATION_MODELS",
    "Text generation and images through the Transformers backend": "_TRANSFORMERS_SUPPORTED_MODELS",
    "The Transformers backend itself": "_TRANSFORMERS_BACKEND_MODELS",
    "Embedding": "_EMBEDDING_MODELS",
    "Late interaction": "_LATE_INTERACTION_MODELS",
    "Reward": "_REWARD_MODELS",
    "Classification of sequences": "_SEQUENCE_CLASSIFICATION_MODELS",
    "Classification of tokens": "_TOKEN_CLASSIFICATION_MODELS",
    "Images, speech and encoder-decoders": "_MULTIMODAL_MODELS",
    "Drafts of speculative decoding": "_SPECULATIVE_DECODING_MODELS",
}
"""What architectures are for -> the table of vLLM's registry that has them."""

HOOKS: dict[str, tuple[str, ...]] = {
    "vllm.platforms.interface:Platform.apply_config_platform_defaults": ("vllm_config",),
    "vllm.platforms.interface:Platform.check_and_update_config": ("vllm_config",),
    "vllm.platforms.interface:Platform.get_attn_backend_cls": ("selected_backend", "attn_selector_config"),
    "vllm.platforms.interface:Platform.update_block_size_for_backend": ("vllm_config",),
    "vllm.platforms.interface:Platform.validate_request": ("processed_inputs", "params"),
    "vllm.v1.worker.worker_base:WorkerBase.__init__": (
        "vllm_config", "local_rank", "rank", "distributed_init_method", "is_driver_worker",
    ),
    "vllm.v1.worker.worker_base:WorkerBase.load_model": ("load_dummy_weights",),
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


def check() -> None:
    """Raises UnsupportedError with every hook that is missing or has changed; called when a worker starts."""
    if version() not in TRIED:
        raise UnsupportedError(
            f"vLLM {version()} was not tried with fxhlo",
            next_step=f"install vLLM {' or '.join(TRIED)}, or start with VLLM_PLUGINS= for a platform of vLLM's own",
        )
    wrong = [f"{hook}: {problem}" for hook, names in HOOKS.items() if (problem := _problem(hook, names))]
    if wrong:
        raise UnsupportedError(
            f"this vLLM {version()} is not the one that fxhlo was written for:\n  " + "\n  ".join(wrong),
            next_step="reinstall vLLM; if it is unchanged, report this list",
        )


def look_at_models_here() -> None:
    """Makes vLLM inspect a model's class in this process, and import it although it imports what a text model has no use for.

    vLLM inspects in a process of its own, in case the import touches a GPU, and caches the result on disk: the first start of each
    architecture would import all of vLLM twice, although the engine, a fork of this process, needs the class anyway.
    """
    _complete_configs()
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda fn: fn()
    registry._LazyRegisteredModel.load_model_cls = _load_model_class
    for architecture, module in PLAIN_VARIANTS.items():
        if getattr(registry.ModelRegistry.models[architecture], "module_name", "") == _package(module):  # nobody's own
            registry.ModelRegistry.register_model(architecture, f"{module}:{architecture}")


def _complete_configs() -> None:
    """Makes each config that vLLM reads from now on mean what transformers' class makes of it (config_fields.py)."""
    module: Any = importlib.import_module("vllm.config.model")
    read = module.get_config
    if hasattr(read, "__wrapped__"):
        return  # done

    @functools.wraps(read)
    def completed(*args: object, **kwargs: object) -> Any:
        config = read(*args, **kwargs)
        complete(config)
        return config

    module.get_config = completed


def registered() -> dict[str, tuple[str, ...]]:
    """vLLM's own architectures, by what they are for."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    return {title: tuple(getattr(registry, table)) for title, table in REGISTRY.items()}


def registered_name(architecture: str) -> str:
    """The name under which vLLM has a class that it can make one of this name of: of a decoder, a model that pools. Else the name itself."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    return registry.ModelRegistry._normalize_arch(architecture, SimpleNamespace())


def _load_model_class(model: Any) -> Any:
    """In place of _LazyRegisteredModel.load_model_cls, which has the module's and the class's name."""
    with without_images(), _no_gpu_variant(model):
        return getattr(importlib.import_module(model.module_name), model.class_name)


@contextmanager
def _no_gpu_variant(model: Any) -> Iterator[None]:
    """A package of `PLAIN_VARIANTS` imports a GPU's kernels unless it is on a TPU, where it imports nothing."""
    if model.module_name in PLAIN_VARIANTS.values():
        with patch.object(type(current_platform), "device_type", "tpu"):
            importlib.import_module(_package(model.module_name))
    yield


def _package(module: str) -> str:
    """The package vllm.models.<name> of a module."""
    return ".".join(module.split(".")[:3])


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


def start_one_process(vllm_config: VllmConfig) -> None:
    """Sets up vLLM's process groups for a world of one process, once, without opening a socket.

    vLLM's layers need their groups even without parallelism, and vLLM makes a gloo group, which listens on a port, for each.
    A group of one process does not communicate, so torch's "fake" backend is enough. vLLM makes no group of experts for a dense
    model, and a later engine of this process may need one: a config without a model gets all groups.
    """
    if model_parallel_is_initialized():
        return
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

    any_model = copy.copy(vllm_config)
    any_model.model_config = None  # type: ignore[assignment]
    with set_current_vllm_config(any_model), _fake_groups():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("fake", store=torch.distributed.HashStore(), rank=0, world_size=1)
        init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="fake")
        ensure_model_parallel_initialized(1, 1)


@contextmanager
def _fake_groups() -> Iterator[None]:
    original: Callable[..., object] = torch.distributed.new_group

    def new_group(*args: object, **kwargs: object) -> object:
        return original(*args, **{**kwargs, "backend": "fake"})

    torch.distributed.new_group = new_group
    try:
        yield
    finally:
        torch.distributed.new_group = original


def forget_layers(vllm_config: VllmConfig) -> None:
    """Clears the config's registry of layers, in which a second model's names would collide, and vLLM's cache of rotary
    embeddings, which a second model would share with the first."""
    rotary_embedding._ROPE_DICT.clear()
    vllm_config.compilation_config.static_forward_context.clear()
    vllm_config.compilation_config.static_all_moe_layers.clear()


def without_layers(vllm_config: VllmConfig) -> VllmConfig:
    """The same config for another model, which registers its layers there."""
    other = copy.copy(vllm_config)
    other.compilation_config = copy.copy(vllm_config.compilation_config)
    other.compilation_config.static_forward_context = {}
    other.compilation_config.static_all_moe_layers = []
    return other


def layers_of(vllm_config: VllmConfig) -> dict[str, Any]:
    """The layers of the model that was built last and that keep state, by name."""
    return dict(vllm_config.compilation_config.static_forward_context)


def linear_layers() -> SimpleNamespace:
    """vLLM's classes of parallel linear layers, by their own names."""
    from vllm.model_executor.layers import linear

    names = ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear", "RowParallelLinear")
    return SimpleNamespace(**{name: getattr(linear, name) for name in names})


def routed_experts() -> type | None:
    """vLLM's class of a layer's experts; None where no model of this process has any."""
    module = sys.modules.get("vllm.model_executor.layers.fused_moe.routed_experts")
    return None if module is None else module.RoutedExperts


def expert_layers() -> SimpleNamespace:
    """vLLM's classes and modules of mixtures of experts, by their own names; imported at the first call, which a model with experts makes."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.router import fused_topk_bias_router
    from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulatorRouter
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    return SimpleNamespace(
        RoutedExperts=RoutedExperts,
        RoutingSimulatorRouter=RoutingSimulatorRouter,
        UnquantizedFusedMoEMethod=UnquantizedFusedMoEMethod,
        fused_topk_bias_router=fused_topk_bias_router,
        moe_runner=moe_runner,
    )


def ir_implementations() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Maps each overload of vLLM's IR ops to the op's implementation in plain torch; `maybe_inplace` has the same."""
    table: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
    for name, op in IrOp.registry.items():
        packet = getattr(torch.ops.vllm_ir, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = op.impls["native"].impl_fn
    return table


@contextmanager
def no_compile() -> Iterator[None]:
    """Runs functions that vLLM's models decorate with torch.compile eagerly while it is entered, also within a trace."""
    import torch._dynamo.config

    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextmanager
def no_quantization() -> Iterator[None]:
    """Keeps vLLM's loader from importing the formats of quantized weights, only to find that there are none, while it is entered.

    Quantized models are refused before.
    """
    with patch.object(base_loader, "_get_online_quantization_config", lambda vllm_config: None):
        yield


@contextmanager
def no_comparison_of_heads(model_config: ModelConfig) -> Iterator[None]:
    """Keeps vLLM from comparing a head with the embedding while it is entered: meta tensors cannot be compared."""
    untied = model_config.word_embeddings_untied_by_checkpoint
    model_config.word_embeddings_untied_by_checkpoint = False
    try:
        yield
    finally:
        model_config.word_embeddings_untied_by_checkpoint = untied


def engine_config(
    model: str,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    block_size: int | None = None,
    **more: Any,
) -> VllmConfig:
    """Makes vLLM's config of a model folder as its engine would; reads config.json alone.

    max_model_len, max_num_batched_tokens, block_size: in tokens; None: the engine's default. more: of vLLM's EngineArgs, by name.
    Raises ModelError with vLLM's or transformers' message for a bad config, FxhloError for unsupported options.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = EngineArgs(
        model=model,
        dtype=dtype,  # type: ignore[arg-type]  # EngineArgs accepts a command line's strings
        max_model_len=max_model_len,  # type: ignore[arg-type]  # None: the model's own
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,  # type: ignore[arg-type]  # None: vLLM's own
        load_format="dummy",
        skip_tokenizer_init=True,
        **more,
    )
    return _engine_config(arguments, UsageContext.LLM_CLASS)


def engine_config_of(model: str, words: Sequence[str]) -> VllmConfig:
    """Makes vLLM's config as `vllm serve MODEL WORDS` would; reads no weights. words: vLLM's own options.

    Raises UnsupportedError for words that are none; else as `engine_config`.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UnsupportedError(message, next_step="vllm serve --help=all lists vLLM's options")

    ours = ["--model", model, "--load-format", "dummy"]
    if not (Path(model) / "tokenizer_config.json").exists():
        ours.append("--skip-tokenizer-init")
    arguments = EngineArgs.from_cli_args(EngineArgs.add_cli_args(Parser()).parse_args([*words, *ours]))
    return _engine_config(arguments, UsageContext.OPENAI_API_SERVER)


def _engine_config(arguments: Any, context: Any) -> VllmConfig:
    """Makes the config of vLLM's EngineArgs. Raises ModelError with what is wrong with the model's own."""
    model = arguments.model
    try:
        return arguments.create_engine_config(context)
    except FxhloError:
        raise
    except Exception as problem:
        _check_stored(Path(model) / "config.json")  # which the platform has not seen yet
        raise ModelError(
            f"vLLM can make no engine of this config: {told(problem)}",
            where=model,
            next_step="check `architectures` and the sizes in config.json",
        ) from problem


def _check_stored(config: Path) -> None:
    """`check_sizes` of a config.json that vLLM makes nothing of, by the names in the file. A multimodal model, of which vLLM wants a
    processor first, is refused as one."""
    if not config.is_file():
        return
    stored = json.loads(config.read_bytes())
    stored = stored if isinstance(stored, dict) else {}
    named = stored.get("architectures") or ()
    if any(_is_multimodal(one) for one in named if isinstance(one, str)):
        raise UnsupportedError(
            "fxhlo does not support multimodal models yet", where=config, next_step="serve a text model"
        )
    check_sizes({name: stored.get(name) for name in (*SIZES, *HEADS)}, config)


def _is_multimodal(architecture: str) -> bool:
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    found = registry.ModelRegistry._try_inspect_model_cls(architecture)
    return found is not None and (found.supports_multimodal or architecture in registry._MULTIMODAL_MODELS)


def kv_cache_space() -> int | None:
    """VLLM_CPU_KVCACHE_SPACE: GiB of KV cache; 0 or None where it is not set."""
    return envs.VLLM_CPU_KVCACHE_SPACE


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


def default_sizes() -> tuple[set[int], set[int]]:
    """vLLM's default values of max_num_batched_tokens and of max_num_seqs."""
    from vllm.engine.arg_utils import EngineArgs

    tokens, requests = EngineArgs.get_batch_defaults(1)
    return set(tokens.values()), set(requests.values())
