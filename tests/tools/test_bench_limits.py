"""What a figure of the bench is held against: the weights that a step reads, and the time that work takes at least."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fxhlo.tools.bench.limits import Limits, Work
from fxhlo.tools.bench.models import SHAPES
from fxhlo.tools.bench.page import _names
from fxhlo.tools.bench.record import Machine, Record
from fxhlo.tools.bench.step_bytes import step_bytes
from fxhlo.tools.bench.throughput import Decoder, Point, ours_with

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    vocab_size=200, tie_word_embeddings=False,
)  # fmt: skip


def test_a_step_reads_each_weight_of_a_product_once() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    decoder = Decoder.of(CONFIG.to_dict(), "bfloat16")
    alone, eight = (decoder.step(Point(count, 32, 16)) for count in (1, 8))
    cache = 40 * 3 * 2 * 2 * 16 * 2  # half way: 40 tokens of keys and values in three layers
    assert alone.bytes == 2 * products + cache
    assert eight.bytes == 2 * products + 8 * cache
    assert alone.flops == 2 * products + 4 * 3 * 4 * 16 * 40, "scores and sums of values"
    assert eight.flops == 8 * alone.flops


def test_prompts_multiply_each_token_and_attend_to_what_is_before() -> None:
    decoder = Decoder.of(CONFIG.to_dict(), "float32")
    layer, head = 64 * 16 * (4 + 4 + 2 + 2) + 3 * 64 * 96, 200 * 64
    work = decoder.prompts(Point(2, 100))
    assert work.bytes == 4 * (3 * layer + head)
    assert work.flops == 2 * (2 * 3 * layer * 100 + 2 * head + 4 * 3 * 4 * 16 * 100 * 100 / 2)


def test_work_takes_as_long_as_the_slower_of_memory_and_arithmetic() -> None:
    limits = Limits(10.0, {"float32": 5.0, "bfloat16": 20.0})
    assert limits.seconds(Work(bytes=100, flops=10), "bfloat16") == 10
    assert limits.seconds(Work(bytes=10, flops=400), "bfloat16") == 20
    assert limits.seconds(Work(bytes=10, flops=400), "float16") == 80, "float16 is multiplied as float32"


@pytest.mark.parametrize("number", [0, 1, 2], ids=["a mixture", "latent attention", "a hybrid"])
def test_a_step_reads_the_weights_of_products_that_a_row_needs(number: int) -> None:
    """Beside transformers' own models. A row chooses k of E experts, whose weights are 2 or 3 dimensional tensors of all of them."""
    config = SHAPES[number].config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    head = config["vocab_size"] * config["hidden_size"]
    tied = bool(config["tie_word_embeddings"])
    counted = float(0 if tied else -head)  # the embedding, of which a row is read
    experts = config.get("num_experts") or config.get("n_routed_experts") or 1
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "conv1d" in name:
            continue
        counted += weight.numel() * (config["num_experts_per_tok"] / experts if ".experts." in name else 1)
    states = config.get("layer_types", []).count("mamba") * 48 * 32 * 128 * 4 * 2
    assert step_bytes(config, 1, 2) == pytest.approx(2 * counted + states, rel=1e-9)


def test_rows_that_choose_the_same_experts_read_them_once() -> None:
    config = SHAPES[0].config
    expert = 8 * 3 * 1024 * 768 * 2
    one, two = step_bytes(config, 1, 2), step_bytes(config, 2, 2)
    assert two - one == pytest.approx(expert * 8 * (1 - 8 / 64))
    assert step_bytes(config, 10_000, 2) - one == pytest.approx(expert * 56)


def test_the_limits_are_those_of_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxhlo.tools.bench.limits.SECONDS", 0.01)
    found = Limits.measure("avx2")
    assert found.bandwidth > 0
    assert set(found.flops) == {"float32"}, "AVX2 has no products of bfloat16"


def test_the_engine_keeps_to_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("XLA_FLAGS", "--one")
    assert ours_with("avx2") == {"CXX": "clang++ -march=x86-64-v3", "XLA_FLAGS": "--one --xla_cpu_max_isa=AVX2"}
    assert ours_with("") == {}


def test_runs_of_other_dtypes_and_instruction_sets_are_kept_beside_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = Machine("a processor", 2, ("avx2", "avx512f"))
    monkeypatch.setattr(Machine, "here", lambda: usual)
    made = [Record.now(words, [], []) for words in ("decode --fast", "decode --dtype float32 --isa avx2 --fast")]
    assert [one.part for one in made] == ["decode", "decode-float32-avx2"]
    assert made[1].command == 'make bench BENCH="--only decode --dtype float32 --isa avx2 --fast"'
    assert all(_names("decode", one.part) for one in made)
    assert not _names("kernels", "kernels-tpu")
