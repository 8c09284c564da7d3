"""vLLM's own models, deep enough that capture copies layers: the graph is that of the whole trace (lowering/capture/repeated.py)."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fxhlo.lowering.capture import repeated
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.tools.architectures.catalog import ARCHITECTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "lowering"))
from program_text import written

DEPTH = 12
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
QUICK = {"LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3MoeForCausalLM"}
"""Plain layers, layers in turn with a period of six, experts."""


def deep(config: dict[str, Any]) -> dict[str, Any]:
    """The config with twelve layers; lists of a value for each layer go on in turn."""
    olds = [config[key] for key in LAYERS if isinstance(config.get(key), int)]
    if not olds:
        return config
    made: dict[str, Any] = {}
    for key, value in config.items():
        per_layer = isinstance(value, list) or "pattern" in key
        if key in LAYERS and isinstance(value, int):
            made[key] = DEPTH
        elif per_layer and key != "architectures" and isinstance(value, list | str) and len(value) == olds[0] > 1:
            made[key] = (value * DEPTH)[:DEPTH]
        elif isinstance(value, dict) and any(name in value for name in LAYERS):
            made[key] = deep(value)
        else:
            made[key] = value
    return made


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.conformance) for name in sorted(ARCHITECTURES)],
)
def test_the_graph_with_copies_is_the_whole_one(name: str, tmp_path: Path) -> None:
    try:
        config = engine_config(written_config(name, tmp_path), dtype="float32", max_model_len=None, max_num_seqs=4)
        build_model(config, weights=False)
    except FxhloError as problem:
        if name in QUICK:
            raise
        pytest.skip(f"not built at this depth: {problem}")
    copied: list[str] = []
    copy = repeated._copy

    def counted(graph: Any, body: Any, node: Any, names: Any) -> None:
        copied.append(node.args[2])
        copy(graph, body, node, names)

    with patch.object(repeated, "_copy", counted):
        short = capture_step(config, build_model(config, weights=False))
    with patch.object(repeated.Layers, "watched", lambda self: nullcontext()):
        whole = capture_step(config, build_model(config, weights=False))
    assert written(short) == written(whole)
    assert copied or name not in QUICK
    print(f"{name}: {len(copied)} layers copied")


def written_config(name: str, folder: Path) -> str:
    import transformers

    architecture = ARCHITECTURES[name]
    sizes = deep(dict(architecture.sizes))
    config = getattr(transformers, architecture.config)(**sizes).to_dict()
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": [name], "dtype": "float32"}, default=str)
    )
    return str(folder)
