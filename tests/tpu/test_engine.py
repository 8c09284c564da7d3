"""libtpu compiles the whole closed set of an engine from its config.json, and the bundle holds the executables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.runtime.core.bundle import Bundle

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 256,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 256,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SIZES = ("--max-num-seqs", "4", "--max-num-batched-tokens", "4", "--max-model-len", "64")


def ran(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lower-model")), "engine", "config.json", "--target", "tpu-v6e:2x4"]
    return subprocess.run([*command, *words], capture_output=True, text=True, cwd=folder)


def test_an_engine_of_a_slice_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    done = ran(tmp_path, *SIZES, "--gpu-memory-utilization", "0.5", "--json", "-o", "engine")
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    assert facts["fits"] and facts["memory"] == int(31.25 * 2**30)
    reserved = 0.5 * facts["memory"] - facts["weights"] - 2**30
    assert 0.99 * reserved < facts["caches"] <= reserved, "half of the device, less the weights and a reserve"
    assert facts["needed"] >= facts["weights"] + facts["caches"]
    bundle = Bundle.open(tmp_path / "engine")
    assert list(bundle.entries) == [one["name"] for one in facts["programs"]] == ["tokens=4,requests=4"]
    for entry, one in zip(bundle.entries.values(), facts["programs"], strict=True):
        build = entry.builds["tpu-v6e:2x4"]
        assert build.executable is not None and build.fingerprint["device"] == "TPU v6 lite"
        assert one["code"] > 0 and one["seconds"] > 0


@pytest.mark.conformance
@pytest.mark.parametrize("size", [64, 16])
def test_caches_are_sized_by_padded_heads(size: int, tmp_path: Path) -> None:
    """A TPU's tiles have 128 columns, and 8 rows: keys and values of 3 heads take 8, whatever vLLM counts."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": size, "hidden_size": 6 * size}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **heads}))
    done = ran(tmp_path, *SIZES, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    blocks, (program,) = facts["sizes"]["num_blocks"], facts["programs"]
    assert facts["caches"] == blocks * 16 * 8 * 128 * 2 and facts["caches"] > 0.85 * facts["memory"]
    assert facts["caches"] < program["arguments"] < facts["caches"] + 2 * facts["weights"] + 2**20
    assert facts["fits"]


def test_an_engine_that_does_not_fit(tmp_path: Path) -> None:
    """Weights of 64 GiB are refused before anything is compiled."""
    large = {
        **CONFIG,
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(large))
    done = ran(tmp_path, *SIZES)
    assert done.returncode == 1 and "the weights do not fit" in done.stderr, done.stderr[-3000:]
