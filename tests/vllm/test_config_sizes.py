"""Sizes in config.json that no model can have: one error that names the field, from config.json alone, before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from vllm.engine.arg_utils import EngineArgs

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.conditions import condition_of
from fxhlo.runtime.vllm.folder import ModelError
from fxhlo.runtime.vllm.memory import CacheSizeError
from fxhlo.runtime.vllm.model import build_model, layers_of
from fxhlo.tools.architectures.catalog import ARCHITECTURES

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("LlamaForCausalLM", {"num_key_value_heads": 3}, "num_attention_heads is 4, which num_key_value_heads is 3"),
    ("LlamaForCausalLM", {"hidden_size": -64}, "hidden_size is -64"),
    ("LlamaForCausalLM", {"head_dim": 0}, "head_dim is 0"),
    ("LlamaForCausalLM", {"intermediate_size": -1}, "intermediate_size is -1"),
    ("LlamaForCausalLM", {"vocab_size": "x"}, "vocab_size"),
    ("GPT2LMHeadModel", {"n_layer": 0}, "n_layer is 0"),
    ("MixtralForCausalLM", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than num_local_experts is 4"),
    ("MixtralForCausalLM", {"num_local_experts": -4}, "num_local_experts is -4"),
    ("Qwen3MoeForCausalLM", {"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ("DeepseekV3ForCausalLM", {"n_group": 3}, "n_routed_experts is 8, which n_group is 3"),
    ("DeepseekV3ForCausalLM", {"topk_group": 5}, "topk_group is 5, more than n_group is 4"),
    ("DeepseekV3ForCausalLM", {"kv_lora_rank": 0}, "kv_lora_rank is 0"),
    ("DeepseekV3ForCausalLM", {"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
    ("DeepseekV32ForCausalLM", {"index_topk": 0}, "index_topk is 0"),
    ("MambaForCausalLM", {"state_size": 0}, "state_size is 0"),
    ("MambaForCausalLM", {"conv_kernel": -1}, "conv_kernel is -1"),
    ("Mamba2ForCausalLM", {"n_groups": 3}, "num_heads is 8, which n_groups is 3"),
    ("FalconH1ForCausalLM", {"mamba_n_groups": 3}, "mamba_n_heads is 8, which mamba_n_groups is 3"),
    ("NemotronHForCausalLM", {"n_groups": 3}, "mamba_num_heads is 8, which n_groups is 3"),
    ("Zamba2ForCausalLM", {"mamba_ngroups": 3}, "n_mamba_heads is 8, which mamba_ngroups is 3"),
    ("Qwen3NextForCausalLM", {"linear_num_value_heads": 3}, "linear_num_value_heads is 3, which linear_num_key_heads"),
    ("Qwen3NextForCausalLM", {"linear_key_head_dim": 0}, "linear_key_head_dim is 0"),
    ("Lfm2ForCausalLM", {"conv_L_cache": 0}, "conv_L_cache is 0"),
]


def folder_of(folder: Path, name: str, **written: Any) -> str:
    one = ARCHITECTURES[name]
    config = getattr(transformers, one.config)(**one.sizes).to_dict()
    config |= {"architectures": [name], "dtype": "float32", **written}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return str(folder)


@pytest.mark.parametrize(("name", "written", "said"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_size_that_cannot_be(name: str, written: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        engine_config(folder_of(tmp_path, name, **written), dtype="float32", max_model_len=128)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.next_step


def test_sizes_that_differ_by_layer(tmp_path: Path) -> None:
    """transformers' config of Gemma 4 has no `head_dim` of all layers, and raises where one asks for it."""
    config = transformers.Gemma4TextConfig(**ARCHITECTURES["Gemma4ForCausalLM"].sizes)
    config.architectures = ["Gemma4ForCausalLM"]
    config.save_pretrained(tmp_path)
    model = build_model(engine_config(str(tmp_path), dtype="float32", max_model_len=128), weights=False)
    sizes = {layer.head_size for layer in layers_of(model).values()}
    assert len(sizes) == 2


def test_heads_of_an_encoder_that_do_not_divide(tmp_path: Path) -> None:
    """An empty assertion of vLLM's, with its numbers."""
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 5,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    config = transformers.BertConfig(**sizes).to_dict() | {"architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"hidden_size is 64, which num_attention_heads is 5"):
        build_model(engine_config(str(tmp_path), dtype="float32"), weights=False)


def test_an_assertion_without_a_text_is_told_with_its_numbers() -> None:
    heads, groups = 8, 3
    with pytest.raises(AssertionError) as caught:
        assert heads % groups == 0
    caught.value.args = ()
    assert "heads % groups == 0 does not hold, with heads = 8, groups = 3" in condition_of(caught.value)


def test_blocks_that_hold_no_request(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "LlamaForCausalLM")
    with pytest.raises(
        CacheSizeError, match="2 KV blocks do not hold one request of 128 tokens, which needs 8"
    ) as caught:
        EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            max_model_len=128,
            num_gpu_blocks_override=2,
            block_size=16,
            load_format="dummy",
        ).create_engine_config()
    assert "--num-gpu-blocks-override to 9" in str(caught.value)


def test_an_encoder_does_not_generate(tmp_path: Path) -> None:
    """vLLM's Transformers backend would make a decoder of it, whose tokens see those of their own step alone."""
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    config = transformers.BertConfig(**sizes).to_dict() | {"architectures": ["BertLMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="text generation by an encoder") as caught:
        build_model(engine_config(str(tmp_path), dtype="float32"), weights=False)
    assert "--runner pooling" in str(caught.value)
