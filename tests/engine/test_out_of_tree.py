"""Models that vLLM's registry does not have: registered by hand, by a plugin, or known to transformers alone, each equal to transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fxhlo.tools.architectures.compare import Worker
from fxhlo.tools.architectures.reference import NEW_TOKENS, Reference

HERE = Path(__file__).parent
REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class TwinConfig(LlamaConfig):
    model_type = "twin"


class TwinModel(LlamaModel):
    config_class = TwinConfig


class TwinForCausalLM(LlamaForCausalLM):
    config_class = TwinConfig
"""
"""Code that lies in the model's folder: neither vLLM nor transformers has the class."""
AUTO_MAP = {
    "AutoConfig": "twin.TwinConfig", "AutoModel": "twin.TwinModel", "AutoModelForCausalLM": "twin.TwinForCausalLM",
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "registered": ("OutOfTreeForCausalLM", {"architectures": ["RegisteredForCausalLM"]}),
    "plugin": ("OutOfTreeForCausalLM", {"architectures": ["PluginForCausalLM"]}),
    "remote": (
        "TransformersForCausalLM",
        {"architectures": ["TwinForCausalLM"], "model_type": "twin", "auto_map": AUTO_MAP},
    ),
    "transformers-impl": ("TransformersForCausalLM", {}),
}
"""Folder -> the class that vLLM takes, what its config.json says otherwise than Llama's."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with transformers' answers."""
    folder = tmp_path_factory.mktemp("models") / "LlamaForCausalLM"
    with (folder.parent / "log.txt").open("w") as log, Worker("reference", log, {"VLLM_PLUGINS": ""}) as worker:
        assert worker.ask(str(folder)), (folder.parent / "log.txt").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def served(reference: Path) -> dict[str, dict[str, Any]]:
    """Every model through an engine, one after the other in one process that has the plugin's package on its path."""
    packages = reference.parent / "packages"
    package = packages / "out_of_tree-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: out-of-tree\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nout_of_tree = out_of_tree:plugin\n")
    folders = []
    for name, (_, changes) in MODELS.items():
        folders.append(folder := reference.parent / name)
        shutil.copytree(reference, folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "twin.py").write_text(REMOTE)
    environment = {
        **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(reference.parent / "modules"),
        "PYTHONPATH": os.pathsep.join([str(packages), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    prompts = [answer.prompt for answer in Reference.load(reference).answers]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "out_of_tree", *map(str, folders)],
        input=json.dumps([prompts, NEW_TOKENS]) + "\n", text=True, capture_output=True, env=environment, cwd=reference.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return dict(zip(MODELS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_outside_of_the_registry(name: str, served: dict[str, dict[str, Any]], reference: Path) -> None:
    assert served[name]["class"] == MODELS[name][0]
    assert served[name]["tokens"] == [answer.tokens for answer in Reference.load(reference).answers]
