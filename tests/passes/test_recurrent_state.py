"""Recurrent layers with a state per request, beside the same layers over each whole sequence in eager torch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.base import Pass
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.recurrent_state import RecurrentState
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program

sys.path.insert(0, str(Path(__file__).parent))
from step_decoder import run_eager

HEADS, SIZE, KEYS = 2, 4, 3
WIDTH = HEADS * SIZE


class Mixer(torch.nn.Module):
    """A convolution and a recurrence of each kind, one after the other."""

    def __init__(self, named: bool = True) -> None:
        super().__init__()
        self.named = named
        self.weight, self.bias = torch.nn.Parameter(torch.randn(WIDTH, 4)), torch.nn.Parameter(torch.randn(WIDTH))
        self.a = torch.nn.Parameter(-torch.rand(WIDTH, KEYS))
        self.keys = torch.nn.Parameter(torch.randn(WIDTH, HEADS * KEYS))

    def forward(self, hidden: Tensor, logit_rows: Tensor) -> Tensor:
        ops, x = torch.ops.fxhlo, hidden
        x = ops.causal_conv1d(x, self.weight, self.bias, layer=self.layer("conv"), silu=True)
        k = x @ self.keys
        d, bias = self.bias, self.bias
        x = x + ops.selective_scan(
            x, k.sum(-1, keepdim=True) + x, self.a, k[:, :KEYS], k[:, KEYS:], d, bias, layer=self.layer("m1")
        )
        heads, k = torch.tanh(x).view(-1, HEADS, SIZE), torch.tanh(k).view(-1, HEADS, KEYS)
        dt, a = k[:, :, 0], self.a[:HEADS, 0]
        heads = heads + ops.ssd(heads, dt, a, k[:, :1], k[:, 1:], d[:HEADS], bias[:HEADS], layer=self.layer("m2"))
        heads = heads + ops.gated_delta_rule(
            k, k, heads, -torch.abs(dt), torch.sigmoid(dt), layer=self.layer("gdn"), scale=0.5, l2norm=True
        )
        heads = heads + ops.lightning_attention(k, k, heads, -a, layer=self.layer("lightning"))
        return ops.select_rows(heads.reshape(-1, WIDTH), logit_rows)

    def layer(self, name: str) -> str:
        return name if self.named else ""


def captured(named: bool = True) -> tuple[Mixer, Program]:
    register_torch_ops()
    torch.manual_seed(0)
    model = Mixer(named)
    inputs = [Input("hidden", ("tokens", WIDTH), torch.float32), Input("logit_rows", ("requests",), torch.int32)]
    sizes = {"tokens": (1, 64), "requests": (1, 8)}
    return model, capture_callable(model, model, inputs, sizes, results=("hidden_out",))


SHAPES = {
    "conv_state.conv": (3, WIDTH),
    "recurrent_state.m1": (WIDTH, KEYS),
    "recurrent_state.m2": (HEADS, SIZE, KEYS),
    "recurrent_state.gdn": (HEADS, SIZE, KEYS),
    "recurrent_state.lightning": (HEADS, SIZE, KEYS),
}


def states(program: Program, slots: int) -> dict[str, Tensor]:
    """What an earlier request may have left: nothing of it may be read."""
    nodes = zip(program.arguments, program.placeholders, strict=True)
    found = {argument.name: node.meta["val"] for argument, node in nodes if argument.kind == "state"}
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == SHAPES
    return {name: torch.full((slots, *value.shape[1:]), torch.nan, dtype=value.dtype) for name, value in found.items()}


def test_chunks_of_requests_among_each_other_give_what_each_whole_sequence_gives() -> None:
    model, program = captured()
    passes: list[Pass] = [RecurrentState(), Donate()]
    after = run(passes, program, [verify])
    sequences = [torch.randn(length, WIDTH) for length in (9, 4, 1)]
    chunks = [(3, 4, 0), (1, 0, 0), (0, 0, 1), (4, 0, 0), (1, 0, 0)]
    kept, done, rows = states(after, 5), [0, 0, 0], [[], [], []]
    for counts in chunks:
        parts = [one[at : at + count] for one, at, count in zip(sequences, done, counts, strict=True)]
        done = [at + count for at, count in zip(done, counts, strict=True)]
        total = sum(counts)
        inputs = {
            "hidden": torch.cat([*parts, torch.full((2, WIDTH), torch.nan)]),  # two unused rows
            "logit_rows": torch.arange(total, dtype=torch.int32),
            "state_slots": torch.tensor([4, 2, 1, 0], dtype=torch.int32),  # and an unused request
            "seq_lens": torch.tensor([*done, 0], dtype=torch.int32),
            "query_start_loc": torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist(), total], dtype=torch.int32),
        }
        outputs = run_eager(after, {**inputs, **kept})
        kept = {name: outputs[f"{name}.updated"] for name in kept}
        for index, part in enumerate(outputs["hidden_out"].split(counts)):
            rows[index].append(part)
    for sequence, found in zip(sequences, rows, strict=True):
        expected = model(sequence, torch.arange(len(sequence), dtype=torch.int32))
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)
    assert all(kept[name][3].isnan().all() for name in kept), "a slot of no request was written"


def test_the_inputs_are_those_of_other_passes_and_the_dtypes_those_of_the_layers() -> None:
    _, program = captured()
    step = RecurrentState((("recurrent_state.m2", torch.bfloat16), ("conv_state.conv", torch.float16)))
    after = run([step], program, [verify])
    names = [argument.name for argument in after.arguments if argument.kind == "input"]
    assert names == ["hidden", "logit_rows", *(one.name for one in step.inputs)]
    found = {a.name: n.meta["val"].dtype for a, n in zip(after.arguments, after.placeholders, strict=True)}
    dtypes = [found[name] for name in SHAPES]
    assert dtypes == [torch.float16, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    assert [dim.name for dim in after.dims] == ["tokens", "requests", "num_slots"]


def test_a_layer_without_a_name_keeps_nothing_and_says_so() -> None:
    _, program = captured(named=False)
    after = run([RecurrentState()], program, [verify])
    assert after.arguments == program.arguments
    (note,) = after.notes
    assert (note.reason, note.count) == ("a layer without a name has no state of its own", 5)
