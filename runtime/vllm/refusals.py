"""Tables of unsupported options: of an engine's config, checked at start-up, and of a request's sampling parameters.

Each row has the option's name, a predicate that says whether it is set, and what to do instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ..core.errors import UnsupportedError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MAX_BIAS = 1024
"""Maximum number of `logit_bias` entries in a request."""


FOR_GPUS = frozenset(
    (
        "DeepseekV4ForCausalLM",
        "Glm5NextForCausalLM",
        "HYV4ForCausalLM",
        "InklingForCausalLM",
        "InklingForConditionalGeneration",
        "Qwen4ExpForCausalLM",
    )
)
"""Architectures whose classes call a GPU's own kernels in plain sight: vllm.models.deepseek_v4, glm5next, hy_v4, inkling and
qwen4_exp."""
OF_THE_SECOND_RUNNER = frozenset(("LongcatFlashNgramForCausalLM",))
"""Architectures with a state that vLLM's second model runner keeps, and no layer."""


@dataclass(frozen=True)
class Refusal:
    """what: completes "fxhlo does not support ... yet". asked: whether the config (or the parameters) set it; truthy if so."""

    what: str
    asked: Callable[[Any], object]
    next_step: str


BY_HAND = "each starts the same `vllm serve` with --nnodes N --master-addr ADDRESS --node-rank I, and with --headless all but the first (docs/hosts.md)"
RAY_EXECUTOR = Refusal(
    "the ray executor",
    # which vLLM chooses itself for engines that ray starts
    lambda c: (
        c.parallel_config.distributed_executor_backend == "ray" and c.parallel_config.data_parallel_backend != "ray"
    ),
    f"leave out --distributed-executor-backend: one host needs no ray for its devices, and of several {BY_HAND}",
)
RAY_ENGINES = Refusal(
    "engines that ray starts",
    lambda c: c.parallel_config.data_parallel_backend == "ray",
    "leave out --data-parallel-backend: vLLM itself starts the engines of --data-parallel-size on one host; an engine over several hosts "
    f"needs no ray either: {BY_HAND}",
)


def ray_for(asked: Iterable[Mapping[str, object]]) -> UnsupportedError:
    """What to say where vLLM would have ray installed. asked: options by vLLM's names."""
    refusal = RAY_ENGINES if any(one.get("data_parallel_backend") == "ray" for one in asked) else RAY_EXECUTOR
    return UnsupportedError(f"fxhlo does not support {refusal.what} yet", next_step=refusal.next_step)


def _wide(name: str) -> Callable[[Any], bool]:
    return lambda config: getattr(config.parallel_config, name, 1) > 1


CONFIG = (
    Refusal(
        "pipelines over several hosts",
        lambda c: c.parallel_config.pipeline_parallel_size > 1 and c.parallel_config.nnodes > 1,
        "leave out --pipeline-parallel-size or --nnodes",
    ),
    Refusal(
        "pipelines with asynchronous scheduling",
        lambda c: c.parallel_config.pipeline_parallel_size > 1 and c.scheduler_config.async_scheduling is True,
        "leave out --async-scheduling: a pipeline has several steps under way without it",
    ),
    Refusal(
        "experts split among engines",
        lambda c: c.parallel_config.data_parallel_size > 1 and c.parallel_config.enable_expert_parallel,
        "leave out --enable-expert-parallel: each engine has all experts; or split them over the devices of one engine, with attention by "
        'requests: --tensor-parallel-size N --enable-expert-parallel --additional-config \'{"fxhlo": {"attention_data_parallel": N}}\'',
    ),
    Refusal(
        "prompts split over devices by their tokens",
        _wide("prefill_context_parallel_size"),
        "leave out --prefill-context-parallel-size; --decode-context-parallel-size splits the KV cache, for prompts too",
    ),
    Refusal(
        "several hosts with data parallelism",
        lambda c: c.parallel_config.nnodes > 1 and c.parallel_config.data_parallel_size > 1,
        "leave out --nnodes or --data-parallel-size",
    ),
    Refusal(
        "vLLM's backends for communication between devices",
        lambda c: c.parallel_config.all2all_backend != "allgather_reducescatter",
        # not --dcp-comm-backend: models with sparse latent attention choose one by themselves
        "leave out --all2all-backend: the target's compiler makes the collectives",
    ),
    Refusal(
        "another placement of experts or of KV blocks on devices",
        lambda c: (
            c.parallel_config.expert_placement_strategy != "linear"
            or c.parallel_config.cp_kv_cache_interleave_size != 1
        ),
        "leave out --expert-placement-strategy and --cp-kv-cache-interleave-size",
    ),
    Refusal("dual batch overlap", lambda c: c.parallel_config.enable_dbo, "leave out --enable-dbo"),
    RAY_EXECUTOR,
    RAY_ENGINES,
    Refusal(
        "executors other than uni and mp",
        lambda c: c.parallel_config.distributed_executor_backend not in (None, "uni", "mp", "ray"),
        "leave out --distributed-executor-backend",
    ),
    Refusal("speculative decoding", lambda c: c.speculative_config, "leave out --speculative-config"),
    Refusal("diffusion decoding", lambda c: c.diffusion_config, "leave out --diffusion-config"),
    Refusal("LoRA adapters", lambda c: c.lora_config, "leave out --enable-lora, or merge the adapter into the weights"),
    Refusal("watermarking", lambda c: c.watermark_config, "leave out --watermark-config"),
    Refusal("KV connectors", lambda c: c.kv_transfer_config, "leave out --kv-transfer-config and --kv-offloading-size"),
    Refusal("encoder connectors", lambda c: c.ec_transfer_config, "leave out --ec-transfer-config"),
    Refusal("KV cache offloading", lambda c: c.cache_config.kv_offloading_size, "leave out --kv-offloading-size"),
    Refusal("weight transfer", lambda c: c.weight_transfer_config, "leave out --weight-transfer-config"),
    Refusal("auxiliary outputs", lambda c: c.aux_output_config.enabled, "leave out --enable-return-routed-experts"),
    Refusal("quantized weights", lambda c: c.model_config.quantization, "use the model's unquantized weights"),
    Refusal(
        "a KV cache of another type than the model's",
        lambda c: c.cache_config.cache_dtype not in ("auto", str(c.model_config.dtype).removeprefix("torch.")),
        "use --kv-cache-dtype auto",
    ),
    Refusal(
        "models that vLLM has for GPUs alone",
        lambda c: FOR_GPUS.intersection(c.model_config.architectures),
        "serve this model on another platform of vLLM",
    ),
    Refusal(
        "models with a state of vLLM's second model runner",
        lambda c: OF_THE_SECOND_RUNNER.intersection(c.model_config.architectures),
        "serve this model on another platform of vLLM",
    ),
    Refusal(
        "mixtures of experts in vLLM's encoders with rotary embeddings, which call a kernel of Triton (`moe_every_n_layers`)",
        lambda c: getattr(c.model_config.hf_config, "moe_every_n_layers", 0) > 0,
        "serve a model of the family without experts (nomic-embed-text-v1.5 for v2-moe), or this one on another platform of vLLM",
    ),
    Refusal("multimodal models", lambda c: c.model_config.is_multimodal_model, "serve a text model"),
    Refusal(
        "runners other than generate and pooling",
        lambda c: c.model_config.runner_type not in ("generate", "pooling"),
        "use --runner generate or --runner pooling",
    ),
    Refusal("encoder-decoder models", lambda c: c.model_config.is_encoder_decoder, "serve a decoder model"),
    Refusal("ReplaySSM", lambda c: c.cache_config.use_replayssm, "leave out --use-replayssm"),
    Refusal(
        "stochastic rounding of states",
        lambda c: c.mamba_config.enable_stochastic_rounding,
        "leave out --enable-mamba-cache-stochastic-rounding",
    ),
    Refusal(
        "kernels of vLLM's for states",
        lambda c: c.mamba_config.backend.value not in ("triton", "cpu"),
        "leave out --mamba-backend",
    ),
    Refusal(
        "states of prefixes kept at other places than the ends of KV blocks",
        lambda c: (
            c.model_config.has_inner_state
            and c.cache_config.enable_prefix_caching
            and {c.cache_config.mamba_block_size, c.cache_config.prefix_match_unit} - {None, c.cache_config.block_size}
        ),
        "leave out --mamba-block-size and --prefix-match-unit",
    ),
    Refusal(
        "another layout of convolutions' states",
        lambda c: c.model_config.has_inner_state and os.environ.get("VLLM_SSM_CONV_STATE_LAYOUT") == "DS",
        "unset VLLM_SSM_CONV_STATE_LAYOUT",
    ),
    Refusal("expert parallel load balancing", lambda c: c.parallel_config.enable_eplb, "leave out --enable-eplb"),
    Refusal(
        "a backend of vLLM's for mixtures of experts",
        lambda c: c.kernel_config.moe_backend != "auto",
        "leave out --moe-backend",
    ),
    Refusal("prompts of embeddings", lambda c: c.model_config.enable_prompt_embeds, "leave out --enable-prompt-embeds"),
    Refusal("custom logits processors", lambda c: c.model_config.logits_processors, "leave out --logits-processors"),
    Refusal(
        "logits processors of installed packages",
        lambda c: entry_points(group="vllm.logits_processors"),
        "uninstall the packages with an entry point vllm.logits_processors; importlib.metadata.entry_points names them",
    ),
    Refusal(
        "profilers other than torch's",
        lambda c: c.profiler_config.profiler not in (None, "torch"),
        'use --profiler-config \'{"profiler": "torch", "torch_profiler_dir": "DIR"}\', or FXHLO_PROFILE=DIR',
    ),
    Refusal("sampling masks", lambda c: c.model_config.return_sampling_mask, "leave out --return-sampling-mask"),
    Refusal("trace replay", lambda c: c.model_config.enable_trace_replay, "leave out --enable-trace-replay"),
)

REQUEST = (
    Refusal("prompt_logprob_token_ids", lambda p: p.prompt_logprob_token_ids is not None, "leave it out"),
    Refusal("logprob_token_ids", lambda p: p.logprob_token_ids, "ask for logprobs, the most likely tokens, instead"),
    Refusal("thinking_token_budget", lambda p: p.thinking_token_budget is not None, "limit max_tokens instead"),
    Refusal("trace_decode_token_ids", lambda p: p.trace_decode_token_ids is not None, "leave it out"),
    Refusal(
        f"logit_bias with more than {MAX_BIAS} entries",
        lambda p: p.logit_bias and len(p.logit_bias) > MAX_BIAS,
        "use allowed_token_ids, which has no limit, or fewer entries",
    ),
)


def check_config(vllm_config: VllmConfig) -> None:
    """Raises UnsupportedError that lists every unsupported option of this config."""
    found = [refusal for refusal in CONFIG if refusal.asked(vllm_config)]
    if found:
        raise UnsupportedError(
            f"fxhlo does not support {', '.join(refusal.what for refusal in found)} yet",
            next_step="; ".join(refusal.next_step for refusal in found),
        )


def check_request(inputs: object, params: object) -> None:
    """Raises vLLM's VLLMValidationError for the first unsupported parameter of this request. params: how to sample, or to pool."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    if isinstance(inputs, dict) and inputs.get("type") not in ("token", None):
        raise VLLMValidationError(
            f"fxhlo does not support prompts of type {inputs['type']} yet: send text or token ids"
        )
    for refusal in REQUEST if isinstance(params, SamplingParams) else ():
        if refusal.asked(params):
            name = refusal.what.split("=")[0].split()[0]
            raise VLLMValidationError(f"fxhlo does not support {refusal.what} yet: {refusal.next_step}", parameter=name)
