"""Checkpoints whose tensors have other names than vLLM's class, and modules of models that import what is not installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.checkpoint_names import CheckpointNames
from fxhlo.runtime.vllm.layers.gated_delta_net import fused_loader
from fxhlo.runtime.vllm.model_imports import without_images


class Layer(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj"]}

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.qkv_proj = nn.LayerNorm(4), nn.Linear(4, 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attention_layer_norm.weight", "input_layernorm.weight"),
        ("input_layernorm.weight", "input_layernorm.weight"),
        ("q_proj.weight", "q_proj.weight"),
        (
            "feedforward_layer_norm.weight",
            "feedforward_layer_norm.weight",
        ),  # the model has none of transformers' name either
        ("unknown.weight", "unknown.weight"),
        ("experts.0.w1.weight", "experts.0.w1.weight"),
    ],
)
def test_a_tensor_gets_the_name_that_the_class_has(name: str, expected: str) -> None:
    assert CheckpointNames(Layer(), "olmo_hybrid").of(name) == expected


def test_known_names_do_not_read_transformers_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    names = CheckpointNames(Layer(), "llama")
    assert [names.of(one) for one in ("q_proj.weight", "qkv_proj.bias")] == ["q_proj.weight", "qkv_proj.bias"]


def test_convolutions_are_loaded_side_by_side() -> None:
    parameter, load = nn.Parameter(torch.zeros(6, 1, 2)), fused_loader([1, 2, 3], 1, 0)
    for shard, size in ((2, 3), (0, 1)):
        weight = torch.full((size, 2), shard + 1.0)
        weight.shard_id = shard
        load(parameter, weight)
    load(parameter, torch.full((2, 1, 2), 2.0), 1)
    assert parameter[:, 0, 0].tolist() == [1, 2, 2, 3, 3, 3]


def test_a_module_that_needs_torchvision_at_its_top_is_imported_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("fxhlo.runtime.vllm.model_imports.IMAGES", "no_such_images")
    text = "from no_such_images.transforms.v2 import functional as f\nimport no_such_images.io\n"
    (tmp_path / "needs_images.py").write_text(text)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("needs_images")
    with without_images():
        module = importlib.import_module("needs_images")
    assert not [name for name in sys.modules if name.startswith("no_such_images")]
    with pytest.raises(UnsupportedError, match=r"no_such_images.transforms.v2.functional is called"):
        module.f()


def test_what_is_installed_is_imported() -> None:
    finders = list(sys.meta_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxhlo.runtime.vllm.model_imports.IMAGES", "json")
        with without_images():
            assert sys.meta_path == finders
