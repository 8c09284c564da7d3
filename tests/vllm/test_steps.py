"""The nouns of a step agree: the closed set of programs holds every step, inputs and states are those of the programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.passes.cache_groups import CacheGroup
from fxhlo.passes.step_inputs import MODEL, SLOTS, StepInput
from fxhlo.runtime.core.errors import FxhloError, UnsupportedError
from fxhlo.runtime.core.signature import Argument, Result, Signature
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm.batch.request import Request
from fxhlo.runtime.vllm.batch.rows import Batch
from fxhlo.runtime.vllm.batch.sampling import Sampling
from fxhlo.runtime.vllm.layers import catalog
from fxhlo.runtime.vllm.placement import Placement
from fxhlo.runtime.vllm.states.groups import groups_of, placed, specs_for_vllm
from fxhlo.runtime.vllm.states.paged_kv import PagedKV
from fxhlo.runtime.vllm.states.spec import StateSpec, check_states
from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.kinds import Bucket
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes

sys.path.insert(0, str(Path(__file__).parent))
from step_table import table


def signature(inputs: StepInputs, bucket: Bucket) -> Signature:
    shapes = inputs.frame(bucket).shapes
    return Signature(
        tuple(Argument(name, "input", shape, inputs.table[name].dtype) for name, shape in shapes.items()), ()
    )


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dtype": "int64"}, r"positions: \(\(16,\), 'int64'\), and \(\(16,\), 'int32'\) are filled"),
        ({"shape": (8,)}, r"positions: \(\(8,\), 'int32'\)"),
        ({"name": "places"}, r"places: .* and None are filled"),
    ],
    ids=["dtype", "shape", "name"],
)
def test_a_program_that_takes_other_inputs_is_not_served(changed: dict[str, Any], what: str) -> None:
    inputs, bucket = table(), Bucket.of(tokens=16, requests=4)
    right = signature(inputs, bucket)
    inputs.check(bucket, right)
    at = right.positions["positions"]
    arguments = list(right.arguments)
    arguments[at] = replace(arguments[at], **changed)
    with pytest.raises(FxhloError, match=what):
        inputs.check(bucket, Signature(tuple(arguments), ()))


def test_each_input_has_one_filler() -> None:
    fills = Batch(2, 64, [16], Sampling(2, 50)).fills
    table().check_filled(fills)
    with pytest.raises(FxhloError, match="not filled once by parameters, cache group 0: input_ids, logit_rows"):
        table().check_filled({name: names for name, names in fills.items() if name != "rows"})
    with pytest.raises(FxhloError, match="seq_lens"):
        table().check_filled({**fills, "twice": ("seq_lens",)})
    with pytest.raises(FxhloError, match="mm_rows"):
        StepInputs((*MODEL, StepInput("mm_rows", ("tokens",), "int32")), {}).check_filled(
            {"rows": [i.name for i in MODEL]}
        )


def test_what_is_neutral_asks_for_nothing() -> None:
    """A program whose requests are all padding samples, writes nothing into a cache and divides by nothing."""
    register_torch_ops()
    frame = table(vocab_size=70, max_model_len=8).frame(Bucket.of(tokens=4, requests=4))
    given = {name: torch.from_numpy(frame.blank(name)) for name in frame.shapes}
    logits = torch.randn(4, 70)
    for flags in ([0, 0, 0], [1, 1, 1]):
        given["flags"] = torch.tensor(flags, dtype=torch.int32)
        processed = torch.ops.fxhlo.process_logits(
            logits,
            *(
                given[name]
                for name in (
                    "flags", "allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts",
                    "repetition_penalty", "frequency_penalty", "presence_penalty",
                )
            ),
        )  # fmt: skip
        assert torch.equal(processed, logits)
    drawn = torch.ops.fxhlo.sample(
        logits, *(given[name] for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "steps"))
    )
    assert torch.equal(drawn, logits.argmax(1).int())


def test_programs_of_equal_shape_share_what_is_neutral() -> None:
    inputs, placement = table(), Placement(Target.parse("cpu"))
    first, second = (inputs.frame(Bucket.of(tokens=tokens, requests=8)).wide() for tokens in (16, 32))
    assert {"allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts"} <= set(first)
    for name, values in first.items():
        kept = placement.kept(values)
        assert kept is placement.kept(second[name])
        assert np.array_equal(kept, inputs.frame(Bucket.of(tokens=16, requests=8)).blank(name))


def test_blocks_of_two_groups_are_kept_apart() -> None:
    """As vLLM assigns them for layers that keep different things: each group has its block size and its blocks."""
    slots, tables = (
        StepInput("slot_mapping", ("tokens",), "int32", -1),
        StepInput("block_tables", ("requests", 4), "int32"),
    )
    second = (
        StepInput("slot_mapping.1", ("tokens",), "int32", -1),
        StepInput("block_tables.1", ("requests", 2), "int32"),
    )
    lengths = (
        StepInput("seq_lens", ("requests",), "int32"),
        StepInput("query_start_loc", ("requests+1",), "int32", None),
    )
    frame = StepInputs((*MODEL, slots, tables, *lengths, *second, *SLOTS), {}).frame(Bucket.of(tokens=6, requests=2))
    batch = Batch(capacity=2, max_model_len=8, block_sizes=[2, 4], parameters=Sampling(2, 50))
    row = batch.place(Request("a", SamplingParams(), [1, 2, 3], [], [[5, 3], [7]], 0, 0), {})
    batch.extend(row, 0, [[4], [6]])
    found = batch.inputs(np.array([row]), np.array([3], np.int32), frame)
    assert found["slot_mapping"].tolist() == [10, 11, 6, -1, -1, -1]
    assert found["slot_mapping.1"].tolist() == [28, 29, 30, -1, -1, -1]
    assert found["block_tables"].tolist() == [[5, 3, 4, 0], [0] * 4]
    assert found["block_tables.1"].tolist() == [[7, 6], [0, 0]]
    assert set(found) == set(frame.shapes)


def cache(layer: str = "model.layers.0.attn") -> PagedKV:
    return PagedKV.of(layer, block_size=16, kv_heads=2, head_size=8, dtype=torch.bfloat16)


def test_a_paged_cache_is_what_vllm_and_the_program_make_of_it() -> None:
    spec = cache()
    made = spec.for_vllm()
    assert made == FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)
    shape = spec.shape_in({"num_blocks": 9})
    assert shape == (9, 16, 4, 8)
    assert made.page_size_bytes * 9 == np.prod(shape) * 2
    states = (Argument(spec.name, "state", shape, "bfloat16", alias=0),)
    results = (Result(f"{spec.name}.updated", shape, "bfloat16", alias=0),)
    check_states([spec], {"num_blocks": 9}, Signature(states, results))
    for wrong, blocks in ((cache(), 8), (cache("model.layers.1.attn"), 9)):
        with pytest.raises(FxhloError, match=r"states differ .* kv_cache\.model\.layers\.0\.attn"):
            check_states([wrong], {"num_blocks": blocks}, Signature(states, results))


def test_a_layer_of_another_kind_is_refused_by_name() -> None:
    class Mixer:
        pass

    with pytest.raises(UnsupportedError, match=r"the state of Mixer \(layers\.3\.mixer\)"):
        catalog.states({"layers.3.mixer": Mixer()}, 16)


def layer(number: int, **window: int) -> PagedKV:
    return PagedKV.of(f"layers.{number}", block_size=16, kv_heads=2, head_size=8, dtype=torch.bfloat16, **window)


def test_layers_of_a_window_share_memory_with_the_others() -> None:
    """Layers 0 and 2 keep a window, 1 and 3 all tokens: two groups, whose layers number n have one memory."""
    states = [layer(0, window=32), layer(1), layer(2, window=32), layer(3)]
    specs = specs_for_vllm(states)
    assert [type(spec) for spec in specs.values()] == [SlidingWindowSpec, FullAttentionSpec] * 2
    made = [
        KVCacheGroupSpec(["layers.0", "layers.2"], specs["layers.0"]),
        KVCacheGroupSpec(["layers.1", "layers.3"], specs["layers.1"]),
    ]
    groups = groups_of(made, 100)
    assert groups == (CacheGroup(("layers.0", "layers.2"), 16, 7), CacheGroup(("layers.1", "layers.3"), 16, 7))
    assert [state.layer for state in placed(states, groups)] == ["layers.0", "layers.2"]
    assert placed(states, groups[:1]) == tuple(states)


def test_a_window_is_kept_whole_where_blocks_would_need_padding() -> None:
    odd = PagedKV.of("layers.1", block_size=16, kv_heads=3, head_size=8, dtype=torch.bfloat16)
    specs = specs_for_vllm([layer(0, window=32), odd])
    assert [type(spec) for spec in specs.values()] == [FullAttentionSpec] * 2
    double = PagedKV.of("layers.1", block_size=16, kv_heads=2, head_size=16, dtype=torch.bfloat16)
    assert isinstance(specs_for_vllm([layer(0, window=32), double])["layers.0"], SlidingWindowSpec)


def test_a_group_of_another_kind_of_state_is_refused() -> None:
    other = Slots(layer="layers.1", name="x", shape=("num_blocks", 4), dtype="float32")
    groups = (CacheGroup(("layers.0",), 16, 4), CacheGroup(("layers.1",), 16, 4))
    with pytest.raises(UnsupportedError, match=r"Slots \(layers\.1\) in one of 2 cache groups"):
        placed([layer(0), other], groups)


@dataclass(frozen=True, kw_only=True)
class Slots(StateSpec):
    def for_vllm(self) -> None:
        return None


@pytest.mark.parametrize(
    ("name", "shape", "have"),
    [("weight", (3, 2), r"the model's is float32\[2, 3\]"), ("bias.scale", (2,), "the model has none")],
)
def test_a_weight_that_the_model_lacks_is_named(name: str, shape: tuple[int, ...], have: str) -> None:
    placement, model = Placement(Target.parse("cpu")), torch.nn.Linear(3, 2)
    weights = placement.weights([Argument("weight", "weight", (2, 3), "float32")], model)
    assert np.array_equal(weights["weight"], model.weight.detach().numpy())
    with pytest.raises(FxhloError, match=f"{name}.*{have}"):
        placement.weights([Argument(name, "weight", shape, "float32")], model)


def test_the_table_is_what_the_passes_add() -> None:
    options = StepOptions(block_size=16, max_model_len=64, max_tokens=64, max_requests=8, vocab_size=50, logprobs=20)
    added = [one.name for each in step_passes(options) for one in each.inputs]
    assert set(table().table) == {*added, *(one.name for one in MODEL)}
