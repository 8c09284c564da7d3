"""`--tensor-parallel-size` on the CPU's devices: the tokens of one device, and one clear error where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip


LATENT: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 8,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1,
    "norm_topk_prob": True, "mlp_only_layers": [],
}  # fmt: skip


def answers(folder: Path, devices: list[Any], **config: Any) -> dict[str, Any]:
    """By number of devices what an engine answered, or the error that ended its start. The process has four of the CPU's."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG | config))
    environment = {
        **os.environ, "PYTHONSAFEPATH": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    script, out = Path(__file__).parent / "meshes.py", folder / "answers.json"
    command = [sys.executable, script, folder / "model", json.dumps(devices), out]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-5000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


BLOCKS = {"1": 1, "2": 2, "4": 2, "4/2": 4, "4:2": 4, "2:2": 2}
"""Blocks of a cache in the same memory per device, beside one device: with two heads of keys, four devices have each head twice; all of them
hold something else where the two have other blocks, or the blocks of other requests."""


@pytest.mark.parametrize(
    "started", [("1", "4/2", "4:2"), pytest.param(tuple(BLOCKS), marks=pytest.mark.conformance)], ids=["some", "all"]
)
def test_the_tokens_of_one_device_and_one_error_where_there_are_too_few(started: Any, tmp_path: Path) -> None:
    found = answers(tmp_path, [*started, 8])
    for one in started:
        assert found[one]["tokens"] == found["1"]["tokens"], one
        assert found[one]["world"] == 1
    blocks = found["1"]["blocks"]
    assert [found[one]["blocks"] / blocks for one in started] == pytest.approx(
        [BLOCKS[one] for one in started], rel=0.02
    )
    assert "a mesh of 8 devices (model=8) does not fit: this process has 4 of cpu" in found["8"]


@pytest.mark.conformance
def test_recurrent_layers_beside_attention_give_the_tokens_of_one_device(tmp_path: Path) -> None:
    """Two key heads of the delta net, which four devices do not divide, and experts."""
    found = answers(tmp_path, [1, 2, 4], **RECURRENT)
    assert found["2"]["tokens"] == found["1"]["tokens"]
    assert found["4"]["tokens"] == found["1"]["tokens"]


@pytest.mark.conformance
def test_latents_of_other_requests_on_other_devices_give_the_tokens_of_one_device(tmp_path: Path) -> None:
    """And whole experts apart; one device's memory of latents is there as often as there are groups, where without it each has all of them."""
    found = answers(tmp_path, [1, 4, "2:2", "4:2", "4:4"], **LATENT)
    for one in ("4", "2:2", "4:2", "4:4"):
        assert found[one]["tokens"] == found["1"]["tokens"], one
    blocks = found["1"]["blocks"]
    assert [found[one]["blocks"] / blocks for one in ("4", "2:2", "4:2", "4:4")] == pytest.approx(
        [1, 2, 2, 4], rel=0.02
    )


def test_what_the_devices_do_not_divide_is_said_before_weights_are_read(tmp_path: Path) -> None:
    found = answers(tmp_path, [4], intermediate_size=130)
    assert "4 devices do not divide model.layers.0.mlp.gate_up_proj.weight" in found["4"]
    assert "--tensor-parallel-size" in found["4"]
