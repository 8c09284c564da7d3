"""Models that need a slice, from their config.json on this machine: what a device holds, which collectives, and what binds a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
    "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
}  # fmt: skip
"""Llama-3.1-405B."""
SLICES: dict[str, tuple[dict[str, Any], str, tuple[str, ...], int, int]] = {
    "405B": (LLAMA, "tpu-v5p:4x4x4", (), 126, 405_853_388_800),
}
"""(config, target, options, layers, parameters)"""


@pytest.mark.conformance
@pytest.mark.parametrize("name", SLICES)
def test_a_step_on_a_slice_from_its_config(name: str, tmp_path: Path) -> None:
    config, target, options, layers, parameters = SLICES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [
        str(Path(sys.executable).with_name("lower-model")),
        "config.json",
        "--target",
        target,
        "--tensor-parallel",
        "64",
        *options,
    ]
    command += [
        "--max-model-len",
        "8192",
        "--bucket",
        "tokens=64,requests=64,num_blocks=16384",
        "--stop-after",
        "compile",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (module,) = json.loads(done.stdout)["modules"]
    report = module["report"]
    assert report["fits"] is True and report["devices"] == 64
    assert 2 * parameters / 64 <= report["weights"] < 2.3 * parameters / 64, (
        "each device has its part, and what is whole on all"
    )
    sums = [one for one in report["collectives"] if one["kind"] == "all-reduce" and one["count"] > layers]
    assert sum(one["count"] for one in sums) in range(2 * layers, 2 * layers + 3), "two a layer, and the embedding's"
    assert report["link_seconds"] < report["memory_seconds"] < report["network_seconds"]
