"""Positions past what config.json says: rotary tables go on as transformers' do, learned ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.model import build_model, step_function
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.tools.architectures.catalog import ARCHITECTURES

TABLE, LENGTH = 64, 128
"""max_position_embeddings, and the length that is asked for."""
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
ROTARY: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("LlamaForCausalLM", {}),
    "llama3": ("LlamaForCausalLM", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}),
    "linear": ("LlamaForCausalLM", {"rope_type": "linear", "factor": 1.5, **ROPE}),
    "yarn": ("LlamaForCausalLM", {"rope_type": "yarn", "factor": 2.0, **ROPE}),
    "of a part of each head": ("StableLmForCausalLM", {}),
    "two tables": ("Gemma3ForCausalLM", {}),
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, **ROPE}


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")


def configured(name: str, rope: dict[str, Any], folder: Path) -> Any:
    """The config of a model of two layers and a short table, written into the folder."""
    import transformers

    kind, sizes = ARCHITECTURES[name].config, ARCHITECTURES[name].sizes
    positions = "n_positions" if "n_positions" in sizes else "max_position_embeddings"
    more = {"rope_parameters": rope} if rope else {}
    config = getattr(transformers, kind)(**{**sizes, positions: TABLE, **more})
    config.torch_dtype, config.architectures = (
        "float32",
        [transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__],
    )
    config.save_pretrained(folder)
    return config


def written(name: str, rope: dict[str, Any], folder: Path) -> Any:
    """The model, by transformers, with random weights; its files are in the folder."""
    import transformers

    config = configured(name, rope, folder)
    torch.manual_seed(0)
    with set_current_vllm_config(
        VllmConfig()
    ):  # vLLM's Transformers backend leaves its compile decorator on classes of transformers
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ROTARY)
def test_a_rotary_table_goes_on_as_in_transformers(kind: str, tmp_path: Path) -> None:
    tokens = torch.randint(3, 320, (LENGTH,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    with torch.no_grad():
        expected = written(*ROTARY[kind], tmp_path)(tokens[None].long(), use_cache=False).logits[0]
    config = engine_config(str(tmp_path), dtype="float32", max_model_len=LENGTH)
    config.load_config.load_format = "auto"
    model = build_model(config, weights=True)
    every = torch.arange(LENGTH, dtype=torch.int32)
    with torch.no_grad():
        found = step_function(model)(tokens, every, every)
    torch.testing.assert_close(found[:, :320], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "rope", "table"),
    [("GPT2LMHeadModel", {}, "wpe.weight"), ("OPTForCausalLM", {}, "embed_positions.weight"), ("LlamaForCausalLM", DYNAMIC, "cos_sin_cache")],
    ids=["gpt2", "opt", "dynamic"],
)  # fmt: skip
def test_a_table_that_cannot_be_longer_is_refused(name: str, rope: dict[str, Any], table: str, tmp_path: Path) -> None:
    configured(name, rope, tmp_path)
    config = engine_config(str(tmp_path), dtype="float32", max_model_len=LENGTH)
    with pytest.raises(UnsupportedError, match=f"{table} has rows for") as caught:
        capture_step(config, build_model(config, weights=False))
    assert f"max_model_len is {LENGTH}" in str(caught.value)
    assert "--max-model-len" in str(caught.value)
    fits = engine_config(str(tmp_path), dtype="float32", max_model_len=TABLE)
    capture_step(fits, build_model(fits, weights=False))
