"""A step that is cut into stages: one after the other they compute what the whole does, each with the parameters and states of its own layers."""

from __future__ import annotations

import pytest
import torch
from meshes_alone import PASSES
from step_decoder import HEAD_SIZE, KV_HEADS, Decoder, Layer, captured_of, run_eager

from fxhlo.passes.pipeline import run
from fxhlo.passes.program import Program
from fxhlo.passes.stages import CARRIED, cut
from fxhlo.runtime.core.errors import UnsupportedError

LAYERS = 4


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return run(PASSES, captured_of(Decoder([Layer(index, 0) for index in range(LAYERS)])))


def inputs_of(program: Program) -> dict[str, torch.Tensor]:
    """One request of five tokens and one of a single token; states and wide inputs are zeros, which switches processing off."""
    given: dict[str, torch.Tensor] = {}
    sizes = {dim.symbol: {"tokens": 6, "requests": 2, "num_blocks": 4}[dim.name] for dim in program.dims}
    for node, argument in zip(program.placeholders, program.arguments, strict=True):
        if argument.kind in ("input", "state"):
            val = node.meta["val"]
            shape = [size if isinstance(size, int) else int(size.node.expr.xreplace(sizes)) for size in val.shape]
            given[argument.name] = torch.zeros(shape, dtype=val.dtype)
    generator = torch.Generator().manual_seed(1)
    for name, value in given.items():
        if value.shape == (4, 16, 2 * KV_HEADS, HEAD_SIZE):
            given[name] = torch.randn(value.shape, generator=generator)
    given["input_ids"] = torch.tensor([5, 9, 2, 7, 1, 3], dtype=torch.int32)
    given["positions"] = torch.tensor([0, 1, 2, 3, 4, 0], dtype=torch.int32)
    given["slot_mapping"] = torch.tensor([16, 17, 18, 19, 20, 32], dtype=torch.int32)
    given["block_tables"][:, 0] = torch.tensor([1, 2], dtype=torch.int32)
    given["seq_lens"] = torch.tensor([5, 1], dtype=torch.int32)
    given["query_start_loc"] = torch.tensor([0, 5, 6], dtype=torch.int32)
    given["logit_rows"] = torch.tensor([4, 5], dtype=torch.int32)
    return given


def layers_in(stages: int) -> dict[str, int]:
    return {f"layers.{index}": index * stages // LAYERS for index in range(LAYERS)}


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_compute_what_the_whole_does(program: Program, stages: int) -> None:
    inputs = inputs_of(program)
    whole = run_eager(program, inputs)
    found: dict[str, torch.Tensor] = {}
    parts = cut(program, layers_in(stages), stages)
    assert len(parts) == stages
    for part in parts:
        part.check()
        found |= run_eager(part, {**inputs, **found})
    assert {name for name in found if not name.startswith(CARRIED)} == set(whole)
    for name, value in whole.items():
        assert torch.equal(found[name], value), name


def test_a_stage_has_the_weights_and_states_of_its_layers_alone(program: Program) -> None:
    parts = cut(program, layers_in(2), 2)
    for number, part in enumerate(parts):
        names = [argument.name for argument in part.arguments if argument.kind in ("weight", "state")]
        layers = {name.split("layers.")[1][0] for name in names if "layers." in name}
        assert layers == {str(2 * number), str(2 * number + 1)}, names
        assert "embed.weight" in names  # the head is tied to it
        updates = {result.updates for result in part.results if result.updates}
        assert updates == {argument.name for argument in part.arguments if argument.kind == "state"}
    carried = [result.name for result in parts[0].results if result.name.startswith(CARRIED)]
    assert len(carried) == 1, "the hidden states, and nothing that depends on inputs alone"
    assert [one.name for one in parts[1].arguments if one.name.startswith(CARRIED)] == carried


def test_layers_of_two_stages_do_not_share_a_state() -> None:
    layers = [Layer(0, 0), Layer(1, 0)]
    layers[1].name = layers[0].name
    program = run(PASSES, captured_of(Decoder(layers)))
    assert len(cut(program, {"layers.0": 0, "layers.1": 0}, 1)) == 1
    with pytest.raises(UnsupportedError, match="of the pipeline share the state"):
        cut(program, {"layers.0": 0, "layers.1": 1}, 2)
