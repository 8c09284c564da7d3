"""FxhloPlatform: vLLM's platform for fxhlo, with config defaults, the worker's class, and refusals with their reasons.

vLLM imports this module while it is itself half imported, so the top of the file imports only vLLM's base class. The import
changes nothing in the process; the hooks do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from vllm.platforms.interface import Platform, PlatformEnum

from ..core import native
from ..core.errors import UnsupportedError
from . import collection, forking, interrupts
from .config_sizes import check_config_sizes
from .engines import note_engines
from .fixed_fields import check_fixed_fields
from .folder import check_experts, check_folder
from .host import without_accelerator
from .memory import check_blocks
from .parallel import hosts_of, requests_of, stages_of, take_over
from .refusals import check_config, check_request
from .settings import Settings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend
    from vllm.v1.attention.backends.mla.prefill.selector import MLAPrefillSelectorConfig
    from vllm.v1.attention.selector import AttentionSelectorConfig

STEP_TOKENS = 1024
"""Default of max_num_batched_tokens: longer steps are not faster, and each size is one more program to compile."""
STEP_REQUESTS = 64
"""Default of max_num_seqs."""


class FxhloPlatform(Platform):
    """A process in which torch stays on the CPU, whatever the device is, and every step is one PJRT program."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"  # vLLM calls `torch.device(f"{device_name}:0")`
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "fake"  # see compat.start_one_process
    simple_compile_backend = "eager"  # for the few functions that vLLM compiles separately
    _own = False
    """Whether this process is vLLM's command."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def pre_register_and_update(cls, parser: FlexibleArgumentParser | None = None) -> None:
        """Prepares the process. parser: given in the process of vLLM's command line alone."""
        _prepare_process()
        if parser is not None:
            from . import front

            cls._own = True
            front.install()
        else:  # a config is about to be made
            from . import compat

            compat.look_at_models_here()

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Sets the config that capture needs: no torch.compile, no CUDA graphs, layers in plain torch, vLLM's IR ops as ops."""
        from vllm.config import CompilationMode, CUDAGraphMode

        compilation = vllm_config.compilation_config
        compilation.mode = CompilationMode.NONE
        compilation.cudagraph_mode = CUDAGraphMode.NONE
        compilation.custom_ops = ["none"]
        compilation.ir_enable_torch_wrap = True

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Checks the config and the model folder, and sets the options that fxhlo fixes. Raises UnsupportedError, ModelError."""
        _prepare_process()
        collection.resume(own=cls._own)
        interrupts.end_waiting_fronts()
        if cls._own:
            _watch_engines()
        settings = Settings.of(vllm_config)  # refuses what it does not know
        if settings.bundle is None:
            native.prepare()  # a C++ compiler takes as long as vLLM does to start, and runs beside it
        parallel = vllm_config.parallel_config
        if vllm_config.model_config is not None:
            check_config(vllm_config)
            _check_sizes(vllm_config.model_config)
            _settle_cached_states(vllm_config)
            if vllm_config.load_config.load_format in ("auto", "hf", "safetensors"):
                folder = Path(vllm_config.model_config.model)
                if folder.is_dir():
                    check_folder(folder)
                    if experts := vllm_config.model_config.get_num_experts():
                        zero = getattr(vllm_config.model_config.hf_text_config, "zero_expert_num", 0) or 0
                        check_experts(folder, experts, zero)
            _limit_defaults(vllm_config)
            _check_blocks(vllm_config)
        take_over(vllm_config)
        if hosts_of(vllm_config) > 1 and vllm_config.load_config.safetensors_load_strategy is None:
            # from NFS and Lustre, vLLM would have each host read all files ahead
            vllm_config.load_config.safetensors_load_strategy = "lazy"
        _check_stages(vllm_config)
        _part_requests(vllm_config)
        note_engines(vllm_config)
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "fxhlo.runtime.vllm.worker.FxhloWorker"
        parallel.distributed_executor_backend = "uni" if hosts_of(vllm_config) == 1 else "mp"
        parallel.disable_custom_all_reduce = True
        _settle_start(vllm_config, own=cls._own)
        if cls._own and vllm_config.model_config is not None:
            _check_settings(vllm_config, settings)

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """No-op: any block size works, and the programs are made for the one in the config."""

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: object, attn_selector_config: AttentionSelectorConfig, num_heads: int | None = None
    ) -> str:
        """Returns the backend, one for keys and values and one for latents; raises UnsupportedError for kinds of attention that it lacks."""
        config = attn_selector_config
        refused = {
            "sparse attention without latents": config.use_sparse and not config.use_mla,
            "bidirectional attention over multimodal prefixes": config.use_mm_prefix,
            "non-causal attention": config.use_non_causal,
            "per-head scales of the KV cache": config.use_per_head_quant_scales,
            f"heads of size {config.head_size}": config.head_size < 1,
        }
        for what, asked in refused.items():
            if asked:
                raise UnsupportedError(
                    f"fxhlo does not support {what} yet", next_step="serve this model on another platform of vLLM"
                )
        if config.use_mla:
            return "fxhlo.runtime.vllm.layers.latent_attention.FxhloLatentBackend"
        return "fxhlo.runtime.vllm.layers.attention.FxhloAttentionBackend"

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Layers with a window keep only that: a step has a block table per cache group."""
        return True

    @classmethod
    def register_custom_kv_cache_specs(cls, vllm_config: VllmConfig) -> None:
        """The rows of states have a manager of their own."""
        from .states.pool import register

        register()

    @classmethod
    def get_mla_prefill_backend_cls(cls, mla_selector_config: MLAPrefillSelectorConfig) -> type[MLAPrefillBackend]:
        """Returns the only one: prompts take the same form as other rows."""
        from .layers.latent_attention import FxhloLatentPrefill

        return FxhloLatentPrefill

    @classmethod
    def validate_request(cls, processed_inputs: object, params: object) -> None:
        """Raises VLLMValidationError for unsupported parameters; the server answers it with status 400."""
        check_request(processed_inputs, params)

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        raise UnsupportedError(
            f"fxhlo does not support {quant} quantization yet", next_step="use the model's unquantized weights"
        )

    @classmethod
    def import_kernels(cls) -> None:
        """No-op: vLLM's C++ kernels are not used."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """No-op: vLLM's IR ops keep their implementation in plain torch."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "fxhlo"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The host's: vLLM asks for its default sizes, before there is a config with a target. The worker takes the device's."""
        from .memory import total_bytes

        return total_bytes()

    @classmethod
    def get_current_memory_usage(cls, device: torch.types.Device = None) -> float:
        import psutil

        return psutil.Process().memory_info().rss

    @classmethod
    def inference_mode(cls) -> torch.no_grad:
        return torch.no_grad()  # inference tensors cannot be traced

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """No-op: there is one device."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """No-op: seeds are inputs of a step."""

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return torch.get_num_threads()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """Caches are named by layer, not by index."""


def _settle_start(vllm_config: VllmConfig, *, own: bool) -> None:
    """Whether vLLM forks this process for an engine. own: whether the process is vLLM's command, which spawns where it is not told otherwise."""
    parallel = vllm_config.parallel_config
    forking.ready_for_forks()
    if "jax" in sys.modules and xla_has_started():
        forking.spawn()  # a process with XLA's threads must not be forked: the child can deadlock
    elif own and parallel.data_parallel_size == hosts_of(vllm_config) == parallel._api_process_count == 1:
        forking.fork()  # one front end with its engine, and no other process between them


def _watch_engines() -> None:
    """Has the front end know an engine that vLLM killed from one that failed."""
    from . import compat, front

    compat.when_engines_end(front.vllm_ends_engines)


def _check_settings(vllm_config: VllmConfig, settings: Settings) -> None:
    """Checks what the settings name before there is an engine's process, whose errors vLLM tells with all of their tracebacks."""
    from ..core.selection import select
    from .steps.planning.engine import check_settings

    if settings.bundle is None:  # which has its own target, and programs
        check_settings(vllm_config, select(settings.target).target)


def _prepare_process() -> None:
    """Prepares a process in which vLLM makes a config."""
    if (Path.cwd() / "kernels" / "spec.py").is_file():
        # In a process that vLLM starts in this repository's root, transformers would find our folder `kernels` when it probes
        # for the package of that name.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    without_accelerator()  # vLLM may clean up in a process that never had an engine


def xla_has_started() -> bool:
    """Whether this process has a PJRT client. Call it only where jax is already imported: importing takes a second."""
    from ..core.plugins import has_started

    return has_started()


def _check_blocks(vllm_config: VllmConfig) -> None:
    """`check_blocks` of a model whose layers all keep every token; what others need, the worker knows."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    windows = any(getattr(model.hf_text_config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if cache.num_gpu_blocks_override is None or windows or model.is_attention_free or model.runner_type == "pooling":
        return
    if model.original_max_model_len != -1 and cache.block_size:
        needed = -(-model.max_model_len // cache.block_size)
        check_blocks(cache.num_gpu_blocks_override, needed, model.max_model_len)


def _check_sizes(model_config: ModelConfig) -> None:
    where = Path(model_config.model) / "config.json"
    attention, latent = not model_config.is_attention_free, model_config.use_mla
    check_config_sizes(model_config.hf_text_config, where, attention=attention, latent=latent)
    if not model_config.using_transformers_backend():
        from .compat import names_of_class

        check_fixed_fields(model_config.hf_text_config, names_of_class(model_config.architecture), where)
    if model_config.runner_type == "pooling":
        from .sentence_modules import check_modules

        check_modules(model_config)


def _settle_cached_states(vllm_config: VllmConfig) -> None:
    """Whether the states of prefixes are cached, for models with a state per request: what vLLM takes for its default, but on one device alone.

    A prefix's keys and values without its state are of no use, so without cached states there is no prefix caching.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    if not (model.is_hybrid or model.is_attention_free):
        return
    parallel = vllm_config.parallel_config
    if cache.enable_prefix_caching and max(parallel.tensor_parallel_size, parallel.pipeline_parallel_size) > 1:
        from .compat import init_logger

        init_logger("vllm.fxhlo.platform").warning(
            "Prefix caching is off: fxhlo does not cache the states of this model's recurrent layers on several devices yet"
        )
        cache.enable_prefix_caching = False
    if cache.enable_prefix_caching:
        cache.mamba_cache_mode, cache.mamba_block_size = "align", cache.block_size
    else:
        cache.mamba_cache_mode, cache.mamba_block_size = (
            "none",
            model.max_model_len,
        )  # vLLM's values where it caches none


def _check_stages(vllm_config: VllmConfig) -> None:
    """Checks that the stages of a pipeline have layers, as VLLM_PP_LAYER_PARTITION shares them out too."""
    if stages_of(vllm_config) > 1 and vllm_config.model_config is not None:
        from .stages import shared_out

        shared_out(vllm_config.model_config.get_total_num_hidden_layers(), stages_of(vllm_config))


def _part_requests(vllm_config: VllmConfig) -> None:
    """Where groups of devices have the caches of other requests, vLLM's scheduler gives a request blocks of one group."""
    scheduler = vllm_config.scheduler_config
    if requests_of(vllm_config) == 1:
        return
    own = f"{__package__}.scheduler.{'PartedAsyncScheduler' if scheduler.async_scheduling else 'PartedScheduler'}"
    if scheduler.scheduler_cls not in (None, own):
        raise UnsupportedError(
            "attention_data_parallel has a scheduler of its own", next_step="leave out --scheduler-cls, or the option"
        )
    scheduler.scheduler_cls = own


def _limit_defaults(vllm_config: VllmConfig) -> None:
    """Replaces vLLM's default step sizes, which are meant for GPUs. Other numbers are the user's and are kept."""
    from .compat import default_sizes

    scheduler = vllm_config.scheduler_config
    tokens, requests = default_sizes()
    if scheduler.max_num_seqs in requests:
        scheduler.max_num_seqs = min(scheduler.max_num_seqs, STEP_REQUESTS)
    if scheduler.max_num_batched_tokens in tokens:
        whole = 0 if scheduler.enable_chunked_prefill else vllm_config.model_config.max_model_len  # an encoder's prompt
        limit = max(STEP_TOKENS, scheduler.max_num_seqs, whole)
        scheduler.max_num_batched_tokens = min(scheduler.max_num_batched_tokens, limit)
        scheduler.max_num_scheduled_tokens = min(scheduler.max_num_scheduled_tokens or limit, limit)
