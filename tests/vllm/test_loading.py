"""A checkpoint is loaded whole or not at all: tensors removed one by one, of other shapes, that nobody reads, in every format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs

from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.folder import ModelError
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import unread_parameters
from fxhlo.tools.architectures.catalog import ARCHITECTURES

Weights = dict[str, torch.Tensor]
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "GPT2LMHeadModel": {},
    "Gemma2ForCausalLM": {},
    "FalconForCausalLM": {},
    "Phi3ForCausalLM": {},
}
"""Separate and fused projections, biases, transposed weights, tied embeddings."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer that transformers wrote."""
    return checkpoint(tmp_path_factory.mktemp("families") / request.param, request.param)


def checkpoint(folder: Path, name: str, **sizes: Any) -> Path:
    import transformers

    kind, defaults = ARCHITECTURES[name].config, ARCHITECTURES[name].sizes
    layers = {size: 1 for size in ("n_layer", "num_hidden_layers") if size in defaults}
    config = getattr(transformers, kind)(**{**defaults, **layers, **sizes})
    config.torch_dtype = "float32"
    torch.manual_seed(0)
    around = (
        VllmConfig()
    )  # vLLM's Transformers backend leaves its compile decorator on classes of transformers, which looks at it
    around.model_config, around.compilation_config.mode = SimpleNamespace(hf_config=config), CompilationMode.NONE
    with set_current_vllm_config(around):
        model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return folder


def read(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def load(folder: Path, *, unread: bool = False, **options: Any) -> nn.Module:
    config = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, max_model_len=64, dtype="float32", **options
    ).create_engine_config()
    return build_model(config, weights=True, unread=partial(unread_parameters, config) if unread else tuple)


def copied(folder: Path, to: Path, weights: Weights, **config: Any) -> Path:
    """The same model with these weights, and with other values in its config.json."""
    to.mkdir()
    settings = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(settings))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, to / "model.safetensors")
    return to


def test_each_tensor_that_is_missing_is_named(family: Path, tmp_path: Path) -> None:
    weights = read(family)
    load(family)
    for index, missing in enumerate(weights):
        left = {name: tensor for name, tensor in weights.items() if name != missing}
        with pytest.raises(ModelError, match=r"lack 1 tensor of this model: .*" + re.escape(missing)):
            load(copied(family, tmp_path / str(index), left))


def test_a_tensor_that_the_model_class_leaves_out_is_named(tmp_path: Path) -> None:
    """vLLM's Transformers backend does not load the bias of GPT-2's fused projection."""
    whole = checkpoint(tmp_path / "whole", "GPT2LMHeadModel")
    with pytest.raises(
        ModelError, match=r"does not load 1 tensor that the weight files have: .*c_attn\.bias"
    ) as caught:
        load(whole, model_impl="transformers")
    assert "--model-impl" in str(caught.value)


def in_shards(weights: Weights, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name].contiguous() for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_bin(weights: Weights, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize("write", [in_shards, as_bin])
def test_files_of_every_kind_are_counted(write: Callable[[Weights, Path], None], tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "LlamaForCausalLM")
    weights = read(whole)
    write(weights, copied(whole, tmp_path / "all", weights))
    expected, found = load(whole).state_dict(), load(tmp_path / "all").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    del weights["model.layers.0.mlp.up_proj.weight"], weights["lm_head.weight"]
    write(weights, copied(whole, tmp_path / "some", weights))
    with pytest.raises(ModelError, match="lack 2 tensors") as caught:
        load(tmp_path / "some")
    assert "model.layers.0.mlp.up_proj.weight" in str(caught.value)
    assert "lm_head.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"vocab_size": 300}, r"(embed_tokens|lm_head)\.weight of shape \[320, 64\] .* \[300, 64\]"),
        ({"vocab_size": 400}, r"(embed_tokens|lm_head)\.weight of shape \[320, 64\] .* \[400, 64\]"),
        ({"intermediate_size": 96}, r"\[128, 64\]|\[64, 128\]"),
        ({"num_key_value_heads": 1}, r"k_proj\.weight of shape \[32, 64\]"),  # vLLM takes the first head alone
        ({"num_key_value_heads": 4}, r"k_proj\.weight of shape \[32, 64\]"),
        ({"hidden_size": 32}, r"of shape \[320, 64\]"),
    ],
    ids=str,
)
def test_a_config_that_the_weights_contradict(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "LlamaForCausalLM")
    with pytest.raises(ModelError, match=named) as caught:
        load(copied(whole, tmp_path / "other", read(whole), **config))
    assert "config.json" in str(caught.value)


def test_tensors_that_the_architecture_lacks(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "LlamaForCausalLM")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    with pytest.raises(ModelError, match=r"have model\.layers\.0\.self_attn\.q_proj\.bias.*no place") as caught:
        load(copied(whole, tmp_path / "bias", read(whole) | bias))
    assert "attention_bias" in str(caught.value)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in bias.items()}
    load(copied(whole, tmp_path / "zeros", read(whole) | zeros))  # as quantization tools write them
    more = {"model.layers.0.self_attn.gate.weight": torch.ones(64)}
    with pytest.raises(ModelError, match=r"parameters that this architecture lacks.*gate"):
        load(copied(whole, tmp_path / "more", read(whole) | more))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM"])
def test_a_head_beside_tied_embeddings(name: str, tmp_path: Path) -> None:
    """It is tied where it is the same, used where it is another, and the program's shapes follow."""
    tied = checkpoint(tmp_path / "tied", name, tie_word_embeddings=True)
    weights = read(tied)
    assert "lm_head.weight" not in weights
    embedding = weights["model.embed_tokens.weight"]
    stored = load(copied(tied, tmp_path / "stored", {**weights, "lm_head.weight": embedding.clone()}))
    assert names(stored) == names(load(tied))
    assert names(shapes(tmp_path / "stored", stored)) == names(stored)
    build_model(engine_config(str(tmp_path / "stored"), dtype="float32"), weights=False)  # as lower-model does
    other = load(copied(tied, tmp_path / "other", {**weights, "lm_head.weight": -embedding}))
    assert torch.equal(other.lm_head.weight[: len(embedding)], -embedding)
    assert names(shapes(tmp_path / "other", other)) == names(other) == [*names(stored), "lm_head.weight"]
    hidden = torch.randn(3, 64)
    torch.testing.assert_close(other.compute_logits(hidden), -stored.compute_logits(hidden))


def test_a_head_in_other_formats_is_not_dropped(tmp_path: Path) -> None:
    """vLLM looks for a head in safetensors alone, and ties the others without a word."""
    tied = checkpoint(tmp_path / "tied", "LlamaForCausalLM", tie_word_embeddings=True)
    weights = read(tied)
    for factor, folder in ((1, "same"), (-1, "other")):
        every = {**weights, "lm_head.weight": factor * weights["model.embed_tokens.weight"]}
        as_bin(every, copied(tied, tmp_path / folder, every))
    load(tmp_path / "same")
    with pytest.raises(ModelError, match=r"ties lm_head\.weight.*another") as caught:
        load(tmp_path / "other")
    assert '"tie_word_embeddings": false' in str(caught.value)


def names(model: nn.Module) -> list[str]:
    return sorted((name for name, _ in model.named_parameters()), key=lambda name: (name == "lm_head.weight", name))


def shapes(folder: Path, like: nn.Module) -> nn.Module:
    config = EngineArgs(model=str(folder), skip_tokenizer_init=True, max_model_len=64, dtype="float32")
    return build_model(config.create_engine_config(), weights=False, like=like)


def test_a_norm_that_no_step_reads_may_be_missing(tmp_path: Path) -> None:
    """vLLM's A.X K1 has one in its dense layers that it does not use; the one of the layers with experts must be there."""
    folder = checkpoint(tmp_path / "model", "AXK1ForCausalLM", num_hidden_layers=2)
    load(folder, unread=True)
    missing = "model.layers.1.post_mlp_layernorm.weight"
    left = {name: tensor for name, tensor in read(folder).items() if name != missing}
    with pytest.raises(ModelError, match=f"lack 1 tensor of this model: {re.escape(missing)}"):
        load(copied(folder, tmp_path / "without", left), unread=True)


def test_experts_whose_class_looks_under_a_former_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "DbrxForCausalLM")
    model, weights = load(folder), read(folder)
    mine = model.get_parameter("transformer.blocks.1.ffn.experts.routed_experts.w13_weight")
    torch.testing.assert_close(mine[:, :64].flatten(0, 1), weights["transformer.blocks.1.ffn.experts.mlp.w1"])
    assert "transformer.blocks.1.ffn.experts.w13_weight" not in dict(model.named_parameters(remove_duplicate=False))


def test_layers_of_no_shared_experts(tmp_path: Path) -> None:
    """transformers stores layers of no columns, for which vLLM's class has no place."""
    folder = checkpoint(tmp_path / "none", "ExaoneMoeForCausalLM", num_shared_experts=0, num_hidden_layers=2)
    assert any(not tensor.numel() for tensor in read(folder).values())
    load(folder)


def test_a_bias_that_vllm_takes_as_it_is(tmp_path: Path) -> None:
    """Of a classifier of tokens: vLLM makes a parameter of the file's tensor when it finds one."""
    whole = checkpoint(tmp_path / "whole", "Qwen3ForCausalLM", num_labels=3)
    weights = {name: tensor for name, tensor in read(whole).items() if not name.startswith("lm_head")}
    weights |= {"score.weight": torch.randn(3, 64), "score.bias": torch.randn(3)}
    folder = copied(whole, tmp_path / "classifier", weights, architectures=["Qwen3ForTokenClassification"])
    assert torch.equal(dict(load(folder).named_parameters())["score.bias"], weights["score.bias"])


def test_a_head_that_vllms_class_would_not_tie(tmp_path: Path) -> None:
    """Its class has a head of its own, whatever config.json says, and the files have none."""
    folder = checkpoint(tmp_path / "tied", "DeepseekV2ForCausalLM", tie_word_embeddings=True)
    assert "lm_head.weight" not in read(folder)
    model = load(folder)
    assert "lm_head.weight" not in names(model)  # it is the embedding's
    assert names(shapes(folder, model)) == names(model)
    alone = build_model(engine_config(str(folder), dtype="float32"), weights=False)  # as lower-model does
    assert names(alone) == names(model)


def test_a_head_that_vllms_class_ties_in_any_case(tmp_path: Path) -> None:
    """It computes the logits where config.json says that it is another than the embedding."""
    folder = checkpoint(tmp_path / "apart", "Zamba2ForCausalLM", tie_word_embeddings=False, layers_block_type=["hybrid"])
    model = load(folder)
    head = read(folder)["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[: len(head)], head)
    assert names(shapes(folder, model)) == names(model)
    hidden = torch.randn(3, 64)
    torch.testing.assert_close(model.compute_logits(hidden), hidden @ head.T)
