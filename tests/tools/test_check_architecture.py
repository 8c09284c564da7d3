"""Which classes `lower-model` takes: those that an engine would find, outside of vLLM's own registry too."""

from __future__ import annotations

from pathlib import Path

import pytest
import vllm.plugins
from vllm import ModelRegistry

from fxhlo.tools.lower.capture import check_architecture
from fxhlo.tools.models import Model, ModelError

LLAMA = "vllm.model_executor.models.llama:LlamaForCausalLM"


def check(name: str) -> None:
    check_architecture(Model("a model", "folder", Path(), {"architectures": [name]}))


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))


@pytest.mark.parametrize("name", ["OutsideForCausalLM", "OutsideForSequenceClassification", "OutsideModel"])
def test_a_registered_class_and_what_vllm_makes_of_it(name: str) -> None:
    with pytest.raises(ModelError, match=f"no model class {name}"):
        check(name)
    ModelRegistry.register_model("OutsideForCausalLM", LLAMA)
    check(name)


def test_a_class_that_a_plugin_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is there yet, which would have loaded the plugins."""
    monkeypatch.setattr(
        vllm.plugins, "load_general_plugins", lambda: ModelRegistry.register_model("PluggedForCausalLM", LLAMA)
    )
    check("PluggedForCausalLM")


def test_a_class_that_only_transformers_has() -> None:
    check("BitNetForCausalLM")
