"""What config.json says and vLLM's class does not read: refused by name, from config.json alone, and nothing else is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from vllm import ModelRegistry

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import engine_config, names_of_class
from fxhlo.runtime.vllm.config_fields import complete
from fxhlo.runtime.vllm.fixed_fields import FIXED, LAYERS_OF, check_fixed_fields, fixed_of
from fxhlo.runtime.vllm.model import build_model
from fxhlo.tools.architectures.catalog import ARCHITECTURES

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
IGNORED: list[tuple[str, dict[str, Any], str]] = [
    ("GptOssForCausalLM", {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, and is computed as 1e-05"),
    ("GptOssForCausalLM", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0, and is computed as 7.0"),
    ("OlmoeForCausalLM", {"norm_topk_prob": True, "clip_qkv": 8.0}, "norm_topk_prob is True.*clip_qkv is 8.0"),
    ("StableLmForCausalLM", {"use_parallel_residual": True}, "use_parallel_residual is True"),
    ("MixtralForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and is computed as 'silu'"),
    ("DeepseekV3ForCausalLM", {"rope_interleave": False}, "rope_interleave is False"),
    ("FalconH1ForCausalLM", {"projectors_bias": True}, "projectors_bias is True, and is computed as False"),
    ("FalconH1ForCausalLM", {"mamba_rms_norm": True}, "mamba_norm_before_gate is True"),
    ("Mamba2ForCausalLM", {"time_step_limit": [0.5, 0.7]}, r"time_step_limit is \[0.5, 0.7\]"),
    ("Qwen2ForCausalLM", {"head_dim": 32}, "head_dim is 32, and is computed as 16"),
    (
        "Qwen3ForCausalLM",
        {"attention_bias": True, "architectures": ["Qwen3ForSequenceClassification"]},
        "attention_bias is True",
    ),
    ("DeepseekV2ForCausalLM", {"rope_parameters": LINEAR}, "rope_type is 'linear', and is computed as .* default"),
]


def written(folder: Path, name: str, **fields: Any) -> str:
    """A folder with the config.json of the catalog's small model, and other fields."""
    one = ARCHITECTURES[name]
    config = getattr(transformers, one.config)(**one.sizes).to_dict()
    # vLLM renames transformers' class for a model type that shares it (deepseek_v32 for DeepseekV3Config), for the rest of the process
    config |= {
        "architectures": [name],
        "model_type": next(key for key, made in CONFIG_MAPPING_NAMES.items() if made == one.config),
    }
    for field, value in fields.items():
        config[field] = {**config.get(field, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, default=str))
    return str(folder)


@pytest.mark.parametrize(("name", "fields", "said"), IGNORED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_field_that_vllms_class_ignores(name: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        engine_config(written(tmp_path, name, **fields), dtype="float32", max_model_len=128)
    assert "--model-impl transformers" in str(caught.value)


def test_transformers_class_computes_it(tmp_path: Path) -> None:
    """The way out that the error names."""
    folder = written(tmp_path, "MixtralForCausalLM", hidden_act="gelu")
    assert engine_config(folder, dtype="float32", max_model_len=128, model_impl="transformers")


def config_of(name: str) -> Any:
    one = ARCHITECTURES.get(name)
    config = getattr(transformers, one.config)(**one.sizes) if one else getattr(transformers, name).config_class()
    complete(config)
    return config


@pytest.mark.parametrize("name", FIXED)
def test_every_field_is_transformers_own(name: str) -> None:
    """A field that transformers' class has not is never set; and what its defaults say is not refused."""
    config = config_of(name)
    for row in FIXED[name]:
        first = row.field.partition(".")[0]
        assert hasattr(config, first) or first in ("router_bias", "head_dim"), row
    check_fixed_fields(config, [name], Path("config.json"))


def another(value: Any) -> Any:
    """Not this value, and of its kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (str, frozenset)):
        return "another"
    return (
        value[::-1]
        if value == ["dense", "sparse"]
        else [0.5, 0.7]
        if isinstance(value, list)
        else 8.0
        if value is None
        else value + 1
    )


@pytest.mark.parametrize("name", FIXED)
def test_every_row_refuses_another_value(name: str) -> None:
    for row in FIXED[name]:
        config = config_of(name)
        *outer, field = row.field.split(".")
        holder = config
        for part in outer:
            holder = holder.setdefault(part, {}) if isinstance(holder, dict) else getattr(holder, part)
        value = another(row.computed(config) if callable(row.computed) else row.computed)
        if isinstance(holder, dict):
            holder[field] = value
        else:
            object.__setattr__(holder, holder.attribute_map.get(field, field), value)  # some configs check types
        if not row.when(config):
            config.mamba_rms_norm = True
        with pytest.raises(UnsupportedError, match=f"{re.escape(row.field)} is .*, and is computed as"):
            check_fixed_fields(config, [name], Path("config.json"))


POOLERS = {
    "Qwen3ForSequenceClassification": "Qwen3ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "OlmoeForSequenceClassification": "OlmoeForCausalLM",
    "GPT2ForSequenceClassification": "GPT2LMHeadModel",
    "XLMRobertaForTokenClassification": "RobertaModel",
    "Qwen2ForRewardModel": "Qwen2ForCausalLM",
}


@pytest.mark.parametrize("name", POOLERS)
def test_a_model_that_pools_has_its_layers_fields(name: str) -> None:
    assert fixed_of(names_of_class(name)) == FIXED[POOLERS[name]]


def test_every_class_with_others_layers_is_vllms() -> None:
    assert all(names_of_class(name) for name in LAYERS_OF)
    assert not LAYERS_OF.keys() & FIXED.keys()
    assert set(LAYERS_OF.values()) <= FIXED.keys()


def test_a_class_of_somebodys_own_has_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's name, and another class: nothing is known of it."""
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    ModelRegistry.register_model("MixtralForCausalLM", "test_fixed_fields:Own")
    assert not fixed_of(names_of_class("MixtralForCausalLM"))


@pytest.mark.parametrize("name", ["Qwen2MoeForCausalLM", "GptOssForCausalLM"])
def test_windows_that_vllms_class_ignores(name: str, tmp_path: Path) -> None:
    """Of all layers alike, or of every other one, whatever layer_types says."""
    sizes = {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
    folder = written(tmp_path, name, **sizes)
    with pytest.raises(UnsupportedError, match=r"ignores layer_types.*layer [01] is (full|sliding)_attention and has"):
        build_model(engine_config(folder, dtype="float32", max_model_len=128), weights=False)
