"""What an engine is refused for: each row of the table, by the options that a user would give."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from vllm.engine.arg_utils import EngineArgs

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm import refusals
from fxhlo.runtime.vllm.folder import ModelError
from fxhlo.runtime.vllm.front import explanation
from fxhlo.runtime.vllm.layers.attention import FxhloAttention


def config(folder: Path, **options: Any) -> Any:
    return EngineArgs(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, **options
    ).create_engine_config()


@pytest.mark.parametrize(
    ("options", "row", "left_out"),
    [
        ({"distributed_executor_backend": "ray"}, refusals.RAY_EXECUTOR, "--distributed-executor-backend"),
        ({"data_parallel_backend": "ray", "data_parallel_size": 2}, refusals.RAY_ENGINES, "--data-parallel-backend"),
    ],
)
def test_who_asks_for_ray_is_told_how_hosts_are_started(
    options: dict[str, Any], row: refusals.Refusal, left_out: str, folder: Path
) -> None:
    """vLLM refuses it first where ray is not installed, and would have it installed; where it is, it takes ray's executor for its engines too."""
    asked = {"distributed_executor_backend": "ray", "data_parallel_backend": "mp", **options}
    config_of = SimpleNamespace(parallel_config=SimpleNamespace(**asked))
    assert [one for one in (refusals.RAY_EXECUTOR, refusals.RAY_ENGINES) if one.asked(config_of)] == [row]
    with pytest.raises(ValueError, match="Failed to import Ray") as caught:
        config(folder, **options)
    said = str(explanation(caught.value))
    assert row in refusals.CONFIG and row.next_step in said and "pip install ray" not in said
    assert said.startswith(f"fxhlo does not support {row.what} yet") and f"leave out {left_out}:" in said
    assert "--nnodes N --master-addr ADDRESS --node-rank I" in said


class Nothing:
    """Stands for somebody's processor."""


@pytest.mark.parametrize(
    ("options", "named", "advice"),
    [
        ({"logits_processors": ["test_refusals:Nothing"]}, "custom logits processors", "--logits-processors"),
        ({"enable_prompt_embeds": True}, "prompts of embeddings", "--enable-prompt-embeds"),
        ({"enable_lora": True}, "LoRA adapters", "merge the adapter"),
        ({"kv_cache_dtype": "fp8"}, "a KV cache of another type", "--kv-cache-dtype auto"),
        ({"profiler_config": {"profiler": "cuda"}}, "profilers other than torch's", "FXHLO_PROFILE=DIR"),
        (
            {"profiler_config": {"profiler": "proton", "proton_profiler_dir": "/tmp/profiles"}},
            "profilers other than torch's",
            "torch_profiler_dir",
        ),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding",
            "--speculative-config",
        ),
        (
            {"pipeline_parallel_size": 2, "async_scheduling": True},
            "pipelines with asynchronous scheduling",
            "--async-scheduling",
        ),
        (
            {"pipeline_parallel_size": 2, "nnodes": 2, "master_addr": "127.0.0.1"},
            "pipelines over several hosts",
            "--pipeline-parallel-size or --nnodes",
        ),
        (
            {"tensor_parallel_size": 2, "expert_placement_strategy": "round_robin"},
            "another placement of experts or of KV blocks",
            "--expert-placement-strategy",
        ),
        (
            {"tensor_parallel_size": 2, "all2all_backend": "deepep_low_latency"},
            "vLLM's backends for communication",
            "--all2all-backend",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_are_refused(folder: Path, options: dict[str, Any], named: str, advice: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        config(folder, **options)
    assert f"fxhlo does not support {named}" in str(caught.value)
    assert advice in str(caught.value)


HEADS = {"hidden_size": 96, "num_attention_heads": 12, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 320}
LATENT = {
    "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def shared(folder: Path, groups: int = 1, **options: Any) -> Any:
    return config(folder, max_model_len=64, additional_config={"fxhlo": {"attention_data_parallel": groups}}, **options)


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "said", "advice"),
    [
        ("Bert", {}, {"tensor_parallel_size": 2, "groups": 2}, "no KV cache", "leave out attention_data_parallel"),
        ("Mamba2", {"num_heads": 12, "head_dim": 16, "n_groups": 4}, {"tensor_parallel_size": 2, "groups": 2}, "no KV cache", "leave out attention"),
        (
            "Llama",
            {"num_key_value_heads": 2},
            {"tensor_parallel_size": 4, "decode_context_parallel_size": 2, "groups": 2},
            "does not go with --decode-context-parallel-size",
            "leave out",
        ),
        ("DeepseekV3", LATENT, {"tensor_parallel_size": 4, "decode_context_parallel_size": 2}, "latent attention", "by requests"),
        ("Llama", {}, {"pipeline_parallel_size": 3}, "3 stages of a pipeline have no layer each: the model has 2", "to 2 at most"),
        (
            "Mixtral",
            {"num_local_experts": 4, "num_key_value_heads": 12},
            {"tensor_parallel_size": 12, "enable_expert_parallel": True},
            "12 devices do not divide the model's 4 experts",
            "leave out --enable-expert-parallel",
        ),
        ("Llama", {"num_key_value_heads": 6}, {"tensor_parallel_size": 4}, r"do not divide the model's heads of keys \(6\)", "divides 6"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_devices_cannot_share_is_refused_before_there_is_an_engine(
    kind: str, sizes: dict[str, int], options: dict[str, Any], said: str, advice: str, tmp_path: Path
) -> None:
    made = getattr(transformers, f"{kind}Config")(**HEADS | sizes)
    made.architectures = ["BertModel"] if kind == "Bert" else [f"{kind}ForCausalLM"]
    made.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=said) as caught:
        shared(tmp_path, **options)
    assert advice in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("given", "said"), [("0,2", "stage 0 of the pipeline has no layer"), ("2,2", "does not match")]
)
def test_layers_that_nobody_can_share_out(folder: Path, given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", given)
    with pytest.raises(UnsupportedError, match=said) as caught:
        config(folder, pipeline_parallel_size=2)
    assert "VLLM_PP_LAYER_PARTITION" in str(caught.value.next_step)


def test_processors_of_installed_packages_are_not_left_out_in_silence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM loads them without being asked to."""
    entry = metadata.EntryPoint("theirs", "package:Processor", "vllm.logits_processors")
    monkeypatch.setattr(refusals, "entry_points", lambda group: [entry] if group == "vllm.logits_processors" else [])
    with pytest.raises(UnsupportedError, match="logits processors of installed packages"):
        config(folder)


@pytest.mark.parametrize(
    ("config_class", "architecture", "named"),
    [
        ("LlavaConfig", "LlavaForConditionalGeneration", "multimodal models"),
        ("WhisperConfig", "WhisperForConditionalGeneration", "encoder-decoder models"),
        ("DeepseekV4Config", "DeepseekV4ForCausalLM", "models that vLLM has for GPUs alone"),
    ],
)
def test_models_that_are_refused(config_class: str, architecture: str, named: str, tmp_path: Path) -> None:
    made = getattr(transformers, config_class)().to_dict() | {"architectures": [architecture]}
    for vllms_own in ("layer_types", "mlp_layer_types") if architecture == "DeepseekV4ForCausalLM" else ():
        del made[vllms_own]
    (tmp_path / "config.json").write_text(json.dumps(made, default=str))
    with pytest.raises(UnsupportedError, match=named):
        config(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"max_logprobs": -1},
        {"logprobs_mode": "processed_logits"},
        {"logprobs_mode": "raw_logits"},
        {"runner_type": "pooling", "runner": "pooling"},
    ],
)
def test_options_that_are_taken(folder: Path, options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    given = {option: one for option, one in options.items() if option != "runner_type"}
    assert getattr(config(folder, **given).model_config, name) == value


@pytest.mark.parametrize("window", [0, -5])
def test_a_window_without_a_token_is_refused(window: int) -> None:
    """Not taken for no window: the answers would be others than the config's."""
    with pytest.raises(ModelError, match=f"sliding_window is {window}"):
        FxhloAttention(4, 16, 0.25, num_kv_heads=2, sliding_window=window)
    assert FxhloAttention(4, 16, 0.25, num_kv_heads=2, sliding_window=1).sliding_window == 1


def test_experts_of_an_encoder_with_rotary_embeddings(tmp_path: Path) -> None:
    """As nomic-embed-text-v2-moe has them; without experts it is not refused."""
    fields = {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": 96, "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 64, "n_embd": 128, "n_layer": 2, "n_head": 2, "n_inner": 64, "n_positions": 64, "activation_function": "gelu",
        "rotary_emb_base": 10000.0, "rotary_emb_fraction": 1.0, "type_vocab_size": 1,
        "mlp_fc1_bias": True, "mlp_fc2_bias": True, "qkv_proj_bias": True, "layer_norm_epsilon": 1e-5, "rotary_emb_scale_base": None,
        "rotary_emb_interleaved": False, "torch_dtype": "float32",
    }  # fmt: skip
    moe = {"moe_every_n_layers": 2, "num_experts": 4, "moe_top_k": 2}
    (tmp_path / "config.json").write_text(json.dumps(fields | moe))
    with pytest.raises(UnsupportedError, match="mixtures of experts in vLLM's encoders"):
        config(tmp_path, runner="pooling")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert config(tmp_path, runner="pooling")
