"""Steps of tiny models on some of the CPU's devices beside one, in a process of its own: their number is fixed at the first use.

Prints one JSON object: by model and number of devices the mesh, whether the tokens are those of one device, the largest difference of
the other results, and the collectives of the compiled program by kind.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.module import HloModule
from fxhlo.passes.hlo.legalize import legalize_to_run
from fxhlo.passes.hlo.partition import partition
from fxhlo.passes.hlo.plan import Plan
from fxhlo.passes.mlir import bytecode
from fxhlo.passes.pipeline import run
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.signature import Argument
from fxhlo.runtime.vllm import compat
from fxhlo.runtime.vllm.layers import catalog
from fxhlo.runtime.vllm.meshes import plan_of
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step, options_of
from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.kinds import Bucket
from fxhlo.runtime.vllm.steps.passes import step_passes

COLLECTIVES = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DIVIDED = {"head_dim": 8}
"""Of classes of vLLM that divide hidden_size by the heads, whatever config.json says."""
LINEAR = ["linear_attention", "full_attention"]
SSD = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "llama": ("LlamaConfig", {}, (2, 8)),
    "gemma2": ("Gemma2Config", {"sliding_window": 8, "query_pre_attn_scalar": 16}, (2,)),  # another activation, capped logits
    "experts_apart": ("Qwen3MoeConfig", EXPERTS, (4,)),
    "latent": ("DeepseekV3Config", LATENT, (4,)),
    "granite_hybrid": ("GraniteMoeHybridConfig", {  # one group of all heads, which each device has; a norm over all channels
        **SSD, **DIVIDED, "mamba_n_groups": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "layer_types": LINEAR,
    }, (4,)),
    "qwen3_next": ("Qwen3NextConfig", {**EXPERTS, **DELTA, "layer_types": LINEAR, "shared_expert_intermediate_size": 32}, (2,)),
    "requests": ("LlamaConfig", {}, (2, 8)),  # devices have the caches of other requests
    "requests_latent": ("DeepseekV3Config", LATENT, (4,)),
    "context_window": ("GptOssConfig", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 8, "num_attention_heads": 8,
    }, (8,)),
    "bert": ("BertConfig", {"num_key_value_heads": 8}, (2,)),  # attention without a cache, biases everywhere
}  # fmt: skip
MORE: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "deep": ("LlamaConfig", {"num_hidden_layers": 4}, (8,)),  # layers that are emitted once
    "qwen2": ("Qwen2Config", {**DIVIDED, "tie_word_embeddings": True}, (4,)),  # biases, one matrix for embedding and head
    "qwen3": ("Qwen3Config", {}, (8,)),  # norms of each head
    "experts": ("Qwen3MoeConfig", EXPERTS, (4,)),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 8}, (8,)),
    "jamba": ("JambaConfig", {
        **DIVIDED, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    }, (4,)),
    "kimi": ("KimiLinearConfig", {  # a projection of which each device has one part whole
        "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": None, "moe_intermediate_size": 32,
        "num_experts": 4, "num_experts_per_token": 2, "model_max_length": 256, "linear_head_dim": 16, "linear_num_heads": 4,
        "mlp_layer_types": ["dense", "sparse"], "layer_types": LINEAR,
    }, (4,)),
    "requests_window": ("GptOssConfig", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 4, "num_attention_heads": 8,
    }, (4, 8)),
    "requests_hybrid": ("Qwen3NextConfig", {**EXPERTS, **DELTA, "layer_types": LINEAR, "shared_expert_intermediate_size": 32}, (2,)),
    "lfm2": ("Lfm2Config", {**DIVIDED, "layer_types": ["conv", "full_attention"]}, (4,)),
    "context": ("LlamaConfig", {"num_attention_heads": 16}, (4, 8)),  # devices of the same heads have other blocks of the cache
    "falcon_h1": (
        "FalconH1Config",
        {**SSD, "mamba_n_groups": 2, "mamba_d_ssm": 128},
        (2, 4),
    ),  # a projection's parts are scaled
    "qwen3_5": ("Qwen3_5TextConfig", {**DELTA, "layer_types": LINEAR}, (4,)),
    "olmo_hybrid": (
        "OlmoHybridConfig",
        {**DELTA, **DIVIDED, "linear_num_key_heads": 4, "layer_types": LINEAR},
        (4,),
    ),  # norms over all heads
    "nemotron_h": (
        "NemotronHConfig",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "use_mamba_kernels": False,
            "num_hidden_layers": None,
        },
        (2, 4),
    ),
    "zamba2": (
        "Zamba2Config",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 8,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "mamba_d_state": 16,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "adapter_rank": 8,
            "use_mem_rope": True,
        },
        (4,),
    ),
    "mamba2": (
        "Mamba2Config",
        {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 4, "chunk_size": 16},
        (2, 4),
    ),
}  # fmt: skip
"""Others of the same kinds of layers, for `make conformance`."""
CONTEXT = {"context": 2, "context_window": 4}
"""Model -> devices that share the cache of the same heads; its blocks are of four tokens, so that a request has several."""
REQUESTS = {"requests": 2, "requests_latent": 4, "requests_window": 4, "requests_hybrid": 2}
"""Model -> groups of devices that have the caches of other requests, likewise."""
APART = ("experts_apart", "requests_latent")
"""Models whose devices have whole experts."""
TABLES, PARTED = [[1, 4], [2]], [[2, 3], [6]]
"""The blocks of each request; of the eight, two or four following ones are on each device."""
STEP: dict[str, Any] = {
    "input_ids": [5, 6, 7, 8, 9, 3, 4, 5], "positions": [0, 1, 2, 3, 4, 0, 1, 2], "logit_rows": [4, 7],
    "seq_lens": [5, 3], "query_start_loc": [0, 5, 8],
    "temperature": [0.0, 0.9], "seeds": [[1, 0], [7, 0]], "state_slots": [1, 2],
}  # fmt: skip
"""A prompt of five tokens and one of three."""


def main() -> None:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compared(name, Path(folder))
            print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found))


def compared(name: str, folder: Path) -> dict[int, dict[str, Any]]:
    kind, sizes, numbers = (MODELS | MORE)[name]
    given = {key: value for key, value in (SIZES | sizes).items() if value is not None}
    config = getattr(transformers, kind)(**given)
    mapping = transformers.AutoModelForCausalLM._model_mapping
    config.architectures = ["BertModel"] if kind == "BertConfig" else [mapping[type(config)].__name__]
    config.torch_dtype = "float32"
    config.save_pretrained(folder)
    block, tables = (4 if name in CONTEXT | REQUESTS else 16), (PARTED if name in REQUESTS else TABLES)
    engine = compat.engine_config(str(folder), dtype="float32", max_model_len=64, max_num_seqs=2, block_size=block)
    model = build_model(engine, weights=False)
    layers = compat.layers_of(engine)
    states = catalog.states(layers, engine.cache_config.block_size)
    options = options_of(engine, model)
    passes = step_passes(options)
    program = run(passes, capture_step(engine, model))
    sizes = {"tokens": 8, "requests": 2, "num_blocks": 8, "num_slots": 3}
    module = emit(program, {dim.name: sizes[dim.name] for dim in program.dims})
    frame = StepInputs.of(options, passes).frame(Bucket.of(tokens=8, requests=2))
    values = {one.name: value(one, np.random.default_rng(len(one.name))) for one in module.signature.weights}
    for one in module.signature.inputs:
        values[one.name] = (
            frame.padded(one.name, np.asarray(STEP[one.name])) if one.name in STEP else frame.blank(one.name)
        )
    request = np.repeat([0, 1], [5, 3])
    places = [(tables[one][at // block], at % block) for one, at in zip(request, STEP["positions"], strict=True)]
    values["slot_mapping"] = np.array([first * block + at for first, at in places], np.int32)
    values["block_tables"] = np.array([table + [0] * (options.pages - len(table)) for table in tables], np.int32)
    values["logprobs_enabled"] = np.array(1, np.int32)
    single, _ = answers(module, Plan(), values)
    found = {}
    for devices in numbers:
        shared = {"context": CONTEXT.get(name, 1), "requests": REQUESTS.get(name, 1)}
        plan = plan_of(model, layers, states, devices, experts_apart=name in APART, **shared)
        results, text = answers(module, plan, values)
        differ = [np.abs(a.astype(float) - b.astype(float)).max() for a, b in zip(results, single, strict=True)]
        found[devices] = {
            "mesh": str(plan.mesh),
            "tokens": single[0].dtype != np.int32 or bool((results[0] == single[0]).all()),
            "differ": float(max(differ)),
            "collectives": Counter(COLLECTIVES.findall(text)),
        }
    return found


def answers(module: HloModule, plan: Plan, values: dict[str, np.ndarray]) -> tuple[list[np.ndarray], str]:
    """The results of a step in order, and the compiled program's text."""
    signature, data = module.signature, bytecode(module.module)
    if plan.mesh.devices > 1:
        made = partition(data, signature, plan, "cpu")
        signature, data = made.signature, bytecode(made.module)
    legal = legalize_to_run(data, "cpu")
    loaded = pjrt.compile(legal.bytecode, custom_calls=legal.custom_calls, mesh=plan.mesh)
    weights = {
        one.name: plan.weights[one.name].arranged(values[one.name], plan.mesh)
        if one.name in plan.weights
        else values[one.name]
        for one in signature.weights
    }
    bound = Executable(loaded, signature).bind(weights)
    states = dict(zip((one.name for one in signature.states), bound.zeros(), strict=True))
    arrays = [
        states[one.name] if one.name in states else loaded.device.put(values[one.name]) for one in bound.arguments
    ]
    results = [
        in_order(np.asarray(array), plan, one.name.removesuffix(".updated"))
        for one, array in zip(signature.results, bound.execute(arrays), strict=True)
    ]
    return results, loaded.text


def in_order(array: np.ndarray, plan: Plan, name: str) -> np.ndarray:
    """A result as one device has it: pieces in the model's order, and blocks of a cache by their numbers."""
    found, split = plan.split(name).restored(array, plan.mesh), plan.split(name)
    if not split.sharding.dimensions or split.sharding.dimensions[0] != ("context",) or name not in plan.states:
        return found
    parts = plan.mesh.size("context")
    blocks = np.arange(len(found))
    return found[blocks % parts * (len(found) // parts) + blocks // parts]


def value(argument: Argument, random: np.random.Generator) -> np.ndarray:
    if "cos_sin" in argument.name:
        return np.cos(np.arange(np.prod(argument.shape)) * 0.01).reshape(argument.shape).astype(argument.dtype)
    if argument.dtype.startswith("int"):
        return np.zeros(argument.shape, argument.dtype)
    return (random.standard_normal(argument.shape) * 0.2 + ("norm" in argument.name)).astype(argument.dtype)


if __name__ == "__main__":
    main()
