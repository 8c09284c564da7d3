"""vLLM's latent attention layers: the Program beside transformers, the cache beside vLLM's, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from written import SIZES, captured, configured, logits, written

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import AttentionType, cache_groups, engine_config, layers_of
from fxhlo.runtime.vllm.layers.catalog import states
from fxhlo.runtime.vllm.layers.latent_attention import FxhloLatentAttention
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.states.groups import specs_for_vllm

HEADS = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "q_lora_rank": 24}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32,
    "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 0.9,
}  # fmt: skip
DENSE = {"first_k_dense_replace": 2, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
INDEXER = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}
"""With few heads many scores are 0, and which of equal ones is chosen is open."""
SHARED = {"mlp_layer_types": ["dense", "dense"], "indexer_types": ["full", "shared"]}
WRITTEN: dict[str, dict[str, Any]] = {
    **{name: {"n_routed_experts": 0} for name in ("deepseek_v2", "deepseek_v3", "deepseek_v32")},
    "glm_moe_dsa": {"n_routed_experts": 0, "indexer_rope_interleave": True, "index_topk_pattern": "FS"},
}
"""What vLLM reads in config.json besides what transformers writes there; a model without experts."""
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 256}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 1.0, **FACTORS}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "youtu": ("YoutuConfig", {**SIZES, **HEADS}),  # by vLLM's Transformers backend
    "deepseek_v2": ("DeepseekV2Config", {**SIZES, **HEADS, **DENSE, "q_lora_rank": None}),
    "deepseek_v3": ("DeepseekV3Config", {**SIZES, **HEADS, **DENSE, "rope_parameters": YARN}),
    "deepseek_v32": ("DeepseekV32Config", {**SIZES, **HEADS, **DENSE, **INDEXER}),
    "glm_moe_dsa": ("GlmMoeDsaConfig", {**SIZES, **HEADS, **DENSE, **INDEXER, **SHARED}),
    "minicpm3": ("MiniCPM3Config", {**SIZES, **HEADS, "head_dim": 24, "rope_parameters": LONG}),  # decompressed by vLLM
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_program_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    kind, sizes = MODELS[name]
    reference = written(kind, sizes, tmp_path, **WRITTEN.get(name, {}))
    tokens = torch.randint(3, 320, (60,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens[None], use_cache=False).logits[0]
    model, program = captured(tmp_path)
    torch.testing.assert_close(logits(model, program, tokens), expected, rtol=0, atol=1e-4)
    targets = [node.target for node in program.graph.nodes]
    indexers = {"deepseek_v32": 2, "glm_moe_dsa": 1}
    assert targets.count(torch.ops.fxhlo.lightning_index.default) == indexers.get(name, 0)
    latent = 0 if name == "minicpm3" else 2
    assert targets.count(torch.ops.fxhlo.latent_attention.default) == latent
    weights = [argument.name for argument in program.arguments if "kv_b_proj" in argument.name]
    assert len(weights) == 2 - latent, (
        "the projection that the two of the layer were made of is not part of the program"
    )


def test_the_cache_has_the_size_that_vllm_gives_it(tmp_path: Path) -> None:
    configured("YoutuConfig", {**SIZES, **HEADS}, tmp_path)
    config = engine_config(str(tmp_path), dtype="bfloat16", max_model_len=128, max_num_seqs=4)
    build_model(config, weights=False)
    layers = layers_of(config)
    made = states(layers, 16)
    assert [state.shape for state in made] == [("num_blocks", 16, 40)] * 2
    for state in made:
        theirs = layers[state.layer].get_kv_cache_spec(config)
        ours = state.for_vllm()
        assert (type(ours), ours.page_size_bytes) == (type(theirs), theirs.page_size_bytes) == (type(ours), 16 * 40 * 2)


def test_an_indexers_keys_are_a_cache_of_their_own(tmp_path: Path) -> None:
    """In the model's dtype, where vLLM's are of 8 bits with a scale for each 128 values."""
    configured("DeepseekV32Config", {**SIZES, **HEADS, **DENSE, **INDEXER, "index_head_dim": 256}, tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), "n_routed_experts": 0})
    )
    config = engine_config(str(tmp_path), dtype="bfloat16", max_model_len=128, max_num_seqs=4)
    build_model(config, weights=False)
    made = states(layers_of(config), 16)
    assert [(state.shape, state.dtype) for state in made] == [
        (("num_blocks", 16, size), "bfloat16") for _ in range(2) for size in (256, 40)
    ]
    (group,) = cache_groups(config, specs_for_vllm(made))
    assert len(group.layer_names) == 4
    assert group.kv_cache_spec.page_size_bytes == 2 * 16 * (256 + 40) * 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"alibi_slopes": [1.0]}, "ALiBi"),
        ({"logits_soft_cap": 3.0}, "a soft cap"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "not causal"),
        ({"kv_sharing_target_layer_name": "other"}, "shared between layers"),
        ({"kv_cache_dtype": "fp8"}, "in fp8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_op_does_not_do_is_refused(options: dict[str, Any], what: str) -> None:
    fine = {
        "alibi_slopes": None, "kv_cache_dtype": "auto", "logits_soft_cap": None, "attn_type": AttentionType.DECODER,
        "kv_sharing_target_layer_name": None,
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match=what):
        FxhloLatentAttention(**{**fine, **options})
