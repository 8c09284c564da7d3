"""Small inputs in two arrays: the program computes what it does with each input by itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.emit.emit import emit
from fxhlo.passes.fx.feed import Feed
from fxhlo.passes.fx.pack_inputs import PackInputs
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.sample import Sample
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.core.signature import Signature
from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.kinds import Bucket
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_table

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
from step_decoder import HEAD_SIZE, KV_HEADS, VOCABULARY, captured, run_eager

BUCKETS = (Bucket.of(tokens=4, requests=4), Bucket.of(tokens=8, requests=3), Bucket.of(tokens=2, requests=1))
OPTIONS = StepOptions(
    block_size=4, max_model_len=16, max_tokens=8, max_requests=4, vocab_size=VOCABULARY, logprobs=2, bias=3
)
PASSES = (PagedAttention(4, 4), Sample(logprobs=2, bias=3, seen=16), Feed(4))
STATES = {f"kv_cache.layers.{layer}.attn": (9, 4, 2 * KV_HEADS, HEAD_SIZE) for layer in range(2)}


@pytest.fixture(scope="module")
def programs() -> tuple[Program, Program]:
    """Without and with packed inputs."""
    register_torch_ops()
    _, program = captured()
    packing = PackInputs(True, step_table(OPTIONS, PASSES))
    return run(PASSES, program, [verify]), run([*PASSES, packing], program, [verify])


def inputs_of(bucket: Bucket) -> tuple[StepInputs, dict[str, np.ndarray]]:
    """One request of all tokens in the program, which asks for something of everything."""
    inputs, tokens = StepInputs.of(OPTIONS, PASSES), bucket["tokens"]
    frame = inputs.frame(bucket)
    generator = np.random.default_rng(0)
    real = {
        "input_ids": generator.integers(0, VOCABULARY, tokens),
        "positions": np.arange(tokens),
        "slot_mapping": 8 + np.arange(tokens),
        "logit_rows": [tokens - 1],
        "block_tables": [[2, 3, 4, 5]],
        "seq_lens": [tokens],
        "fed": [1, *[-1] * (tokens - 1)],
        "last_rows": [2],
        "temperature": [0.7],
        "top_k": [20],
        "top_p": [0.9],
        "repetition_penalty": [1.5],
        "seeds": [[-3, 5]],
        "steps": [4],
    }
    made = {name: frame.padded(name, np.array(values)) for name, values in real.items()}
    made["query_start_loc"] = np.array([0] + [tokens] * bucket["requests"], np.int32)
    made["flags"] = np.array([0, 0, 1], np.int32)
    made["logprobs_enabled"] = np.array(1, np.int32)
    made["seen_ids"] = frame.padded("seen_ids", np.array([[3, 4, 5, *[-1] * 13]]))
    return inputs, {name: made.get(name, frame.blank(name)) for name in frame.shapes}


def given(signature: Signature, inputs: StepInputs, bucket: Bucket, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arguments of a program that packs, by name."""
    arrays = inputs.packed(bucket, signature)
    names = [one.name for one in signature.inputs]
    return {name: arrays[name].pack(values) if name in arrays else values[name] for name in names}


@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_the_program_takes_its_inputs_apart(programs: tuple[Program, Program], bucket: Bucket) -> None:
    plain, packed = programs
    inputs, values = inputs_of(bucket)
    states = {name: torch.zeros(shape) for name, shape in STATES.items()} | {
        "last_tokens": torch.tensor([7, 8, 9, 10], dtype=torch.int32)
    }
    right = run_eager(plain, {name: torch.from_numpy(value) for name, value in values.items()} | states)
    sizes = {"num_blocks": 9, **dict(bucket.sizes)}
    module = emit(packed, sizes)
    inputs.check(bucket, module.signature)
    assert len(module.signature.inputs) == 2 + 6, "two arrays, and the wide ones"
    arguments = given(module.signature, inputs, bucket, values)
    eager = run_eager(packed, {name: torch.from_numpy(value) for name, value in arguments.items()} | states)
    for name, value in right.items():
        assert torch.equal(eager[name], value), name
    placed = {name: value.numpy() for name, value in states.items()}
    tensors = {name: tensor.detach().numpy() for name, tensor in packed.tensors.items()}
    results = module.compile().bind(tensors)(**arguments, **placed)
    found = dict(zip([one.name for one in module.signature.results], results, strict=True))
    for name in ("tokens", "last_tokens.updated"):
        assert np.asarray(found[name]).tolist() == right[name].tolist()


def test_inputs_that_a_program_lacks_are_not_packed(programs: tuple[Program, Program]) -> None:
    plain, packed = programs
    bucket = BUCKETS[0]
    signature = emit(packed, {"num_blocks": 9, **dict(bucket.sizes)}).signature
    taken = StepInputs.of(OPTIONS, PASSES).taken_by([signature])
    of_plain = emit(plain, {"num_blocks": 9, **dict(bucket.sizes)}).signature
    assert set(taken.table) == {one.name for one in of_plain.inputs}
    assert not taken.packed(bucket, of_plain)
    assert "state_slots" not in taken.table


def test_an_array_of_another_shape_is_not_served(programs: tuple[Program, Program]) -> None:
    bucket = BUCKETS[0]
    signature = emit(programs[1], {"num_blocks": 9, **dict(bucket.sizes)}).signature
    at = next(index for index, one in enumerate(signature.arguments) if one.name.startswith("input_ids+"))
    arguments = list(signature.arguments)
    arguments[at] = replace(arguments[at], shape=(3, 4))
    with pytest.raises(FxhloError, match=r"input_ids\+positions.*\(\(3, 4\), 'int32'\)"):
        StepInputs.of(OPTIONS, PASSES).check(bucket, Signature(tuple(arguments), ()))
