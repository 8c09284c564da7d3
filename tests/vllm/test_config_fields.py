"""What transformers' class of a model has fixed in its code, in the config that vLLM's class reads: files as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import NomicBertConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.config_fields import FAMILIES
from fxhlo.runtime.vllm.folder import ModelError
from fxhlo.tools.architectures.catalog import ARCHITECTURES

WANTED: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": {"score_func": "sigmoid", "route_norm": True},
    "DeepseekV3ForCausalLM": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "first_k_dense_replace": 1},
    "DeepseekV32ForCausalLM": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "first_k_dense_replace": 1},
    "Glm4MoeLiteForCausalLM": {"scoring_func": "sigmoid", "first_k_dense_replace": 1},
    "GlmMoeDsaForCausalLM": {"indexer_rope_interleave": True, "first_k_dense_replace": 1},
    "HYV3ForCausalLM": {"expert_hidden_dim": 32, "qk_norm": True, "first_k_dense_replace": 1},
    "KimiLinearForCausalLM": {"mla_use_nope": True, "first_k_dense_replace": 1},
    "Lfm2ForCausalLM": {"conv_dim": 64, "block_dim": 64, "block_ff_dim": 128},
    "LongcatFlashForCausalLM": {"zero_expert_type": "identity", "mla_scale_q_lora": True},
    "MiMoV2FlashForCausalLM": {"hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "swa_num_key_value_heads": 4},
    "MiniMaxM2ForCausalLM": {"scoring_func": "sigmoid", "use_routing_bias": True},
    "LlamaForCausalLM": {"rope_theta": 10000.0},
}


def config_of(folder: Path, name: str, **written: Any) -> Any:
    """vLLM's config of the model as transformers would save it."""
    one = ARCHITECTURES[name]
    config = getattr(transformers, one.config)(**one.sizes)
    config.architectures = [name]
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    return engine_config(str(folder), dtype="float32", max_model_len=128).model_config.hf_text_config


@pytest.mark.parametrize("name", WANTED)
def test_a_file_of_transformers_means_what_its_class_computes(name: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, name)
    assert {field: getattr(config, field, None) for field in WANTED[name]} == WANTED[name]


def test_every_family_is_tried() -> None:
    kinds = {
        kind for kind, name in CONFIG_MAPPING_NAMES.items() if name in {ARCHITECTURES[one].config for one in WANTED}
    }
    # the encoders' answers depend on it: pooling_models.py
    assert kinds | {"gte", "nomic_bert", "xlm-roberta"} >= set(FAMILIES)


def test_a_file_with_the_fields_is_left_as_it_is(tmp_path: Path) -> None:
    config = config_of(tmp_path, "DeepseekV3ForCausalLM", scoring_func="softmax")
    assert config.scoring_func == "softmax"
    assert getattr(config, "topk_method", None) is None


def test_layers_that_vllms_class_cannot_have(tmp_path: Path) -> None:
    """It has the dense layers first."""
    layers = ["dense", "sparse", "dense"]
    with pytest.raises(
        UnsupportedError, match=r"mlp_layer_types is .*, and is computed as \['dense', 'dense', 'sparse'\]"
    ):
        config_of(tmp_path, "HYV3ForCausalLM", mlp_layer_types=layers, num_hidden_layers=3)
    folder = str(tmp_path)
    assert engine_config(folder, dtype="float32", max_model_len=128, model_impl="transformers")


def test_layers_of_nomic_berts_that_vllms_class_cannot_have(tmp_path: Path) -> None:
    """It has gated ones with silu alone, and takes gelu for ones without a gate."""
    NomicBertConfig(num_hidden_layers=2, hidden_act="gelu", architectures=["NomicBertModel"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="activation_function = 'gated gelu'"):
        engine_config(str(tmp_path), dtype="float32", max_model_len=128)
