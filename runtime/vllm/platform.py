"""The platform that vLLM sees: config defaults, the worker's class, and refusals with their reasons.

vLLM imports this module while it is itself half imported: nothing of vLLM but the base class at the top. Importing it
changes nothing in the process; the hooks do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms.interface import Platform, PlatformEnum

from ..core import native
from ..core.errors import UnsupportedError
from . import interrupts
from .folder import check_folder
from .host import without_accelerator
from .refusals import check_config, check_request

if TYPE_CHECKING:
    from vllm.config import VllmConfig

STEP_TOKENS = 1024
"""Default of max_num_batched_tokens: longer steps are not faster, and each size is a program to compile."""
STEP_REQUESTS = 64
"""Default of max_num_seqs."""


class FxhloPlatform(Platform):
    """A host process in which torch stays on the CPU and every step is one PJRT program."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"  # vLLM makes `torch.device(f"{device_name}:0")` of it
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "fake"  # see compat.start_one_process
    simple_compile_backend = "eager"  # for the few functions that vLLM compiles on their own

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """With a parser, this is the process of vLLM's command line."""
        _prepare_process()
        if parser is not None:
            from . import front

            front.install()
        else:  # a config is about to be made
            from . import compat

            compat.look_at_models_here()

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Config that capture needs: no torch.compile, no CUDA graphs, layers in plain torch, vLLM's IR ops as ops."""
        from vllm.config import CompilationMode, CUDAGraphMode

        compilation = vllm_config.compilation_config
        compilation.mode = CompilationMode.NONE
        compilation.cudagraph_mode = CUDAGraphMode.NONE
        compilation.custom_ops = ["none"]
        compilation.ir_enable_torch_wrap = True

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Checks the config and the model folder, and sets what fxhlo decides. Raises UnsupportedError, ModelError."""
        _prepare_process()
        interrupts.end_waiting_fronts()
        parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
        if vllm_config.model_config is not None:
            check_config(vllm_config)
            if vllm_config.load_config.load_format in ("auto", "hf", "safetensors"):
                folder = Path(vllm_config.model_config.model)
                if folder.is_dir():
                    check_folder(folder)
            _limit_defaults(vllm_config)
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "fxhlo.runtime.vllm.worker.FxhloWorker"
        parallel.distributed_executor_backend = "uni"
        parallel.disable_custom_all_reduce = True
        if "jax" in sys.modules and xla_has_started():
            # A process that has started XLA's threads must not be forked: its child can wait forever for a lock.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # A step's inputs need the tokens of the step before, and there is one program at a time on the device.
        scheduler.async_scheduling = False

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """Nothing to do: any block size works, and the programs were made for the one in the config."""

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """The one backend; raises UnsupportedError for other kinds of attention."""
        config = attn_selector_config
        refused = {
            "latent attention (MLA)": config.use_mla,
            "sparse attention": config.use_sparse,
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
        return "fxhlo.runtime.vllm.layers.attention.FxhloAttentionBackend"

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Raises VLLMValidationError for unsupported parameters; the server answers it with status 400."""
        check_request(processed_inputs, params)

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        raise UnsupportedError(
            f"fxhlo does not support {quant} quantization yet", next_step="use the model's unquantized weights"
        )

    @classmethod
    def import_kernels(cls) -> None:
        """vLLM's C++ kernels are not used."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """vLLM's IR ops keep their implementation in plain torch."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "fxhlo"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        from .memory import total_bytes

        return total_bytes()

    @classmethod
    def get_current_memory_usage(cls, device: Any = None) -> float:
        import psutil

        return psutil.Process().memory_info().rss

    @classmethod
    def inference_mode(cls) -> Any:
        return torch.no_grad()  # inference tensors cannot be traced

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """There is one."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seeds are inputs of a step."""

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return torch.get_num_threads()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """Caches are named by layer, not by index."""


def _prepare_process() -> None:
    """What a process needs in which vLLM makes a config, be it the front end's, and what takes long and can begin there."""
    if (Path.cwd() / "kernels" / "spec.py").is_file():
        # Started in this repository's root, a process of vLLM's own would take our folder `kernels` for the package of that
        # name, which transformers probes for.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    without_accelerator()  # vLLM may clean up in a process that never had an engine
    native.prepare()  # a C++ compiler takes as long as vLLM does to start, and runs beside it


def xla_has_started() -> bool:
    """Whether this process has a PJRT client; asked only where jax is imported already, for it takes a second."""
    from ..core.plugins import has_started

    return has_started()


def _limit_defaults(vllm_config: VllmConfig) -> None:
    """Replaces vLLM's default step sizes, which are a GPU's. A number that is none of its defaults is the user's, and kept."""
    from .compat import default_sizes

    scheduler = vllm_config.scheduler_config
    tokens, requests = default_sizes()
    if scheduler.max_num_seqs in requests:
        scheduler.max_num_seqs = min(scheduler.max_num_seqs, STEP_REQUESTS)
    if scheduler.max_num_batched_tokens in tokens and scheduler.enable_chunked_prefill:
        limit = max(STEP_TOKENS, scheduler.max_num_seqs)
        scheduler.max_num_batched_tokens = min(scheduler.max_num_batched_tokens, limit)
        scheduler.max_num_scheduled_tokens = min(scheduler.max_num_scheduled_tokens or limit, limit)
