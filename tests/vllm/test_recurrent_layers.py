"""Recurrent layers of vLLM: what they become in a step, the state that each keeps, and what vLLM's configs and caches make of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedConfig

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.passes.extension import HINTS
from fxhlo.passes.pipeline import run
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm import compat, memory, worker
from fxhlo.runtime.vllm.layers import catalog, gated_delta_net, linear_attention, recurrent
from fxhlo.runtime.vllm.layers.kind import replaced_in
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4, "expand": 2}
MODELS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "MambaForCausalLM": (
        {**MAMBA, "model_type": "mamba", "time_step_rank": 2, "use_conv_bias": True},
        {"conv_state": ["num_slots", 3, 64], "recurrent_state": ["num_slots", 64, 8]},
    ),
    "Mamba2ForCausalLM": (
        {**MAMBA, "model_type": "mamba2", "num_heads": 4, "head_dim": 16, "n_groups": 2},
        {"conv_state": ["num_slots", 3, 96], "recurrent_state": ["num_slots", 4, 16, 8]},
    ),
    "Lfm2ForCausalLM": (
        {
            **SIZES,
            "model_type": "lfm2",
            "layer_types": ["conv", "full_attention"],
            "conv_L_cache": 3,
            "conv_dim": 32,
            "block_dim": 32,
        },
        {"conv_state": ["num_slots", 2, 32]},
    ),
    "OlmoHybridForCausalLM": (
        {**SIZES, **DELTA, "model_type": "olmo_hybrid"},
        {"conv_state": ["num_slots", 3, 128], "recurrent_state": ["num_slots", 4, 16, 8]},
    ),
}


def config_of(folder: Path, name: str, **more: Any) -> compat.VllmConfig:
    folder.mkdir(exist_ok=True)
    config = {**MODELS[name][0], "architectures": [name], "torch_dtype": "bfloat16", **more}
    (folder / "config.json").write_text(json.dumps(config))
    return compat.engine_config(str(folder), max_model_len=64, max_num_seqs=4)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_the_states_that_vllm_knows_of_each_layer(tmp_path: Path, name: str) -> None:
    config = config_of(tmp_path, name)
    program = capture_step(config, build_model(config, weights=False))
    options = StepOptions.of(config)
    after = run(step_passes(options), program)
    wanted = catalog.states(compat.layers_of(config), options.block_size)
    sizes = {**HINTS, "num_blocks": HINTS["num_blocks"]}
    placeholders = zip(after.arguments, after.placeholders, strict=True)
    have = {
        a.name: (node.meta["val"].dtype, len(node.meta["val"].shape)) for a, node in placeholders if a.kind == "state"
    }
    assert have == {one.name: (getattr(torch, one.dtype), len(one.shape)) for one in wanted}
    in_slots = [one for one in wanted if one.rows == "slots"]
    assert {one.name.split(".")[0]: list(one.shape) for one in in_slots} == MODELS[name][1]
    assert {one.reset for one in in_slots} == {"begin"}
    assert all(one.bytes_in(sizes) % HINTS["num_slots"] == 0 for one in in_slots)
    assert not any("vllm" in str(node.target) for node in after.graph.nodes)


@pytest.mark.parametrize(
    ("name", "cached"), [("Mamba2ForCausalLM", (False, "none", 64)), ("Lfm2ForCausalLM", (True, "align", 16))]
)
def test_prefix_caching_is_vllms_default_and_blocks_stay_small(
    tmp_path: Path, name: str, cached: tuple[bool, str, int]
) -> None:
    cache = config_of(tmp_path, name).cache_config
    assert (cache.enable_prefix_caching, cache.mamba_cache_mode, cache.mamba_block_size) == cached
    assert cache.block_size == 16


def test_vllms_classes_are_themselves_again_after_a_build(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Mamba2ForCausalLM")
    build_model(config, weights=False)
    mixer = sys.modules["vllm.model_executor.layers.mamba.mamba_mixer2"]
    original, op = mixer.MambaMixer2.conv_ssm_forward, torch.ops.vllm.mamba_mixer2
    assert original.__module__ == mixer.__name__
    with catalog.replaced():
        assert mixer.MambaMixer2.conv_ssm_forward is not original
        assert torch.ops.vllm.mamba_mixer2.__wrapped__ is mixer.mamba_mixer2
    assert (mixer.MambaMixer2.conv_ssm_forward, torch.ops.vllm.mamba_mixer2) == (original, op)


def test_a_method_of_another_vllm_is_not_replaced() -> None:
    def forward(layer: object, other: object) -> None: ...

    module = "vllm.model_executor.layers.logits_processor"
    with pytest.raises(UnsupportedError, match=r"LogitsProcessor.forward takes lm_head, .* one that takes other"):
        list(replaced_in(module, {"LogitsProcessor.forward": forward}))
    assert not list(replaced_in("vllm.not_imported", {"forward": forward}))


def test_a_state_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    config = config_of(tmp_path, "MambaForCausalLM")
    build_model(config, weights=False)
    known = next(iter(compat.layers_of(config).values()))

    class Other(compat.MambaBase):
        get_state_shape, get_state_dtype, mamba_type = type(known).get_state_shape, type(known).get_state_dtype, "other"

    with pytest.raises(UnsupportedError, match="the state of Other"):
        catalog.states({"layers.0": Other()}, 16)


def test_the_gate_of_kimis_attention_is_vllms_formula() -> None:
    g, a, bias = torch.randn(5, 6), torch.randn(1, 1, 2, 1), torch.randn(6)
    raw = (g + bias).view(5, 2, 3)
    rate = a.exp().view(2, 1)
    torch.testing.assert_close(gated_delta_net.kda_gate(g, a, 3, bias), -rate * functional.softplus(raw))
    bounded = gated_delta_net.kda_gate(g, a.view(2), 3, bias, lower_bound=-5.0)
    torch.testing.assert_close(bounded, -5.0 * torch.sigmoid(rate * raw))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gated_norm_is_vllms_own_in_plain_torch(before: bool, groups: int) -> None:
    from vllm.third_party.flash_linear_attention.ops.layernorm_guard import rms_norm_ref

    x, z, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    found = linear_attention.rmsnorm_fn(x, weight, None, z, 1e-5, 8 // groups, before)
    expected = rms_norm_ref(x, weight, None, z, 1e-5, 8 // groups, before)
    torch.testing.assert_close(found, expected)


def worker_of(config: compat.VllmConfig) -> worker.FxhloWorker:
    made = worker.FxhloWorker(config, 0, 0, "", is_driver_worker=True)
    made._device = pjrt.device("cpu")  # without the rest of init_device
    return made


def test_states_that_do_not_fit_end_the_start_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[bool] = []

    def build(config: Any, *, weights: bool) -> torch.nn.Module:
        built.append(weights)
        return build_model(config, weights=weights)

    monkeypatch.setattr(worker, "build_model", build)
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    with pytest.raises(memory.CacheSizeError, match=r"the states of 4 requests do not fit(.|\n)*--max-num-seqs"):
        worker_of(config_of(tmp_path, "Lfm2ForCausalLM", hidden_size=1024, conv_dim=1024, block_dim=1024)).load_model()
    assert built == [False]


@pytest.mark.parametrize(("name", "layers"), [("Lfm2ForCausalLM", 1), ("Mamba2ForCausalLM", 2)])
def test_vllm_is_told_of_attention_alone_or_of_a_block_per_request(tmp_path: Path, name: str, layers: int) -> None:
    config = config_of(tmp_path, name)
    config.cache_config.kv_cache_memory_bytes, config.cache_config.kv_cache_layout = 1 << 20, "LBNHC"
    config.cache_config.enable_prefix_caching, config.cache_config.mamba_cache_mode = False, "none"
    config.cache_config.mamba_block_size = 64
    one = worker_of(config)
    one.load_model()
    specs, available = one.get_kv_cache_spec(), one.determine_available_memory()
    made = compat.kv_cache_config(config, specs, available)
    (group,) = made.kv_cache_groups
    assert len(group.layer_names) == layers
    if name == "Lfm2ForCausalLM":
        assert (group.kv_cache_spec.block_size, available) == (16, 1 << 20)
    else:
        assert (group.kv_cache_spec.block_size, made.num_blocks) == (64, 5)
        assert made.num_blocks == StepOptions.of(config).slots


def lightning(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A token at a time (Lightning Attention-2, section 3): two heads of the second of four layers, [T, 2, D] -> [T, 2 * D]."""
    slopes = torch.tensor([2**-4.0, 2**-8.0]) * (1 - 1 / 3 + 1e-5)
    state, rows = torch.zeros(2, q.shape[-1], v.shape[-1]), []
    for at in range(len(q)):
        state = state * torch.exp(-slopes)[:, None, None] + k[at][:, :, None] * v[at][:, None, :]
        rows.append(torch.einsum("hk,hkv->hv", q[at], state))
    return torch.stack(rows).flatten(1)


@pytest.mark.parametrize("name", ["bailing", "minimax"])
def test_linear_attention_is_its_formula(tmp_path: Path, name: str) -> None:
    """transformers has no class of Bailing's, so here are the formulas of vLLM's module."""
    from vllm.model_executor.layers.mamba.linear import bailing_linear_attn, minimax_linear_attn

    config = config_of(tmp_path, "Mamba2ForCausalLM", torch_dtype="float32")
    build_model(config, weights=False)
    register_torch_ops()
    sizes = PreTrainedConfig(
        hidden_size=16, num_attention_heads=2, head_dim=8, num_hidden_layers=4, max_position_embeddings=64, rms_norm_eps=1e-5,
        use_qk_norm=True, use_bias=False, use_qkv_bias=False, group_norm_size=2, linear_silu=True, rope_theta=10000.0,
    )  # fmt: skip
    torch.manual_seed(0)
    hidden, output, positions = torch.randn(7, 16), torch.empty(7, 16), torch.arange(7)
    bailing, minimax = bailing_linear_attn.BailingMoELinearAttention, minimax_linear_attn.MiniMaxText01LinearAttention
    with compat.set_current_vllm_config(config), torch.no_grad(), catalog.replaced():
        layer = (bailing if name == "bailing" else minimax)(sizes, config, "layers.1.attention")
        for parameter in layer.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
        context = compat.ForwardContext(no_compile_layers={layer.prefix: layer}, attn_metadata=None, slot_mapping={})  # type: ignore[arg-type]
        with compat.override_forward_context(context):
            layer(hidden, output, positions)
        expected = (bailing_expected if name == "bailing" else minimax_expected)(layer, hidden, positions)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    (state,) = catalog.states({layer.prefix: layer}, 16)
    assert (state.name, state.shape) == ("recurrent_state.layers.1.attention", ("num_slots", 2, 8, 8))


def bailing_expected(layer: Any, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    qkv = functional.silu(hidden @ layer.query_key_value.weight.T).view(7, 3, 2, 8)
    q, k = (
        functional.rms_norm(qkv[:, index], (8,), by.weight, 1e-5)
        for index, by in ((0, layer.query_layernorm), (1, layer.key_layernorm))
    )
    q, k = layer.rotary_emb.forward_native(positions, q.reshape(7, 16), k.reshape(7, 16))
    attended = lightning(q.view(7, 2, 8) * 8**-0.5, k.view(7, 2, 8), qkv[:, 2])
    normed = functional.rms_norm(attended.view(7, 2, 8), (8,), None, 1e-5).reshape(7, 16) * layer.g_norm.weight
    return (normed * torch.sigmoid(hidden @ layer.g_proj.weight.T)) @ layer.dense.weight.T


def minimax_expected(layer: Any, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    q, k, v = (
        functional.silu(hidden @ layer.qkv_proj.weight.T).view(7, 2, 24).split(8, dim=-1)
    )  # the three of a head side by side
    normed = functional.rms_norm(lightning(q, k, v), (16,), layer.norm.weight, 1e-5)
    return (torch.sigmoid(hidden @ layer.output_gate.weight.T) * normed) @ layer.out_proj.weight.T


def test_the_relatives_of_kimis_attention_compute_the_same() -> None:
    """Kimi's is compared with transformers'; GLM's and Bailing's have three convolutions, and Bailing's gates before the core."""
    register_torch_ops()
    torch.manual_seed(0)
    heads, size, tokens = 2, 4, 6
    width = heads * size
    weights, qkv = torch.randn(3 * width, 1, 4), torch.randn(tokens, 3 * width)
    g, beta = torch.randn(1, tokens, heads, size), torch.randn(1, tokens, heads)
    rates, bias = torch.randn(heads), torch.randn(width)
    fused = SimpleNamespace(weight=weights, bias=None)
    parts = [SimpleNamespace(weight=part, bias=None) for part in weights.split(width)]
    apart = dict(zip(("q_conv1d", "k_conv1d", "v_conv1d"), parts, strict=True))
    common = {"prefix": "layer", "head_dim": size, "A_log": rates, "dt_bias": bias}
    outputs = [torch.empty(1, tokens, heads, size) for _ in range(3)]
    kimi = SimpleNamespace(**common, conv1d=fused, gate_lower_bound=-5.0, o_norm=lambda attended, gate: attended * gate)
    gated_delta_net.kimi_forward(kimi, qkv, g, torch.ones(tokens, heads, size), beta, outputs[0])
    glm = SimpleNamespace(**common, **apart, kda_lower_bound=-5.0)
    gated_delta_net.glm_forward(glm, qkv, g, beta, outputs[1])
    decay = gated_delta_net.kda_gate(g.flatten(2), rates, size, bias, lower_bound=-5.0)
    bailing = SimpleNamespace(**common, **apart)
    gated_delta_net.bailing_forward(bailing, *qkv.split(width, dim=-1), decay, torch.sigmoid(beta), outputs[2])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


def test_a_convolution_with_another_activation_is_refused() -> None:
    layer = SimpleNamespace(prefix="layers.0.mixer")
    with pytest.raises(UnsupportedError, match=r"layers.0.mixer: a convolution with the activation gelu"):
        recurrent.convolved(layer, torch.ones(2, 3), [], "gelu")


def test_convolutions_side_by_side_keep_their_biases() -> None:
    register_torch_ops()
    values, layer = torch.randn(5, 6), SimpleNamespace(prefix="layers.0.mixer")
    parts = [SimpleNamespace(weight=torch.randn(3, 1, 4), bias=torch.randn(3)) for _ in range(2)]
    apart = [recurrent.convolved(layer, part, [one]) for part, one in zip(values.split(3, dim=1), parts, strict=True)]
    torch.testing.assert_close(recurrent.convolved(layer, values, parts), torch.cat(apart, dim=1))


def test_an_op_that_is_taken_apart_leaves_torchs_table_of_decompositions_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch makes it once, of the ops of every namespace that somebody has called, so perhaps while a model is captured."""
    from vllm.model_executor.layers.mamba import mamba_mixer2

    assert torch.ops.vllm.mamba_mixer2.op_overloads()
    (one,) = recurrent.inlined(mamba_mixer2.__name__, "mamba_mixer2")
    assert one.value is not mamba_mixer2.mamba_mixer2
    monkeypatch.setattr(one.owner, one.name, one.value)
    assert torch.ops.aten.silu.default in dict(torch.export.default_decompositions())
