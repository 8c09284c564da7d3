"""A small decoder of our own with what vLLM's models have: grouped heads, norms, a gated MLP, attention as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.program import Program

HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, VOCABULARY, LAYERS = 4, 2, 8, 32, 67, 2


class Layer(torch.nn.Module):
    def __init__(self, index: int, sliding_window: int) -> None:
        super().__init__()
        self.name = f"layers.{index}.attn"
        self.sliding_window = sliding_window
        self.qkv = torch.nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_SIZE)
        self.out = torch.nn.Linear(HEADS * HEAD_SIZE, HIDDEN, bias=False)
        self.up = torch.nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.down = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.norm = torch.nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.normed(hidden)).split(
            [HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE], dim=-1
        )
        attended = torch.ops.fxhlo.attention(
            q.view(-1, HEADS, HEAD_SIZE), k.view(-1, KV_HEADS, HEAD_SIZE), v.view(-1, KV_HEADS, HEAD_SIZE), None, None,
            layer=self.name, scale=HEAD_SIZE**-0.5, sliding_window=self.sliding_window, soft_cap=0.0,
        )  # fmt: skip
        hidden = hidden + self.out(attended.reshape(-1, HEADS * HEAD_SIZE))
        gate, up = self.up(self.normed(hidden)).chunk(2, dim=-1)
        return hidden + self.down(torch.sigmoid(gate) * gate.clone() * up)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norm


class Decoder(torch.nn.Module):
    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = torch.nn.ModuleList(layers or [Layer(0, 0), Layer(1, 5)])

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids) + positions[:, None] * 0.01
        for layer in self.layers:
            hidden = layer(hidden)
        return torch.ops.fxhlo.select_rows(hidden, logit_rows) @ self.embed.weight.T


def captured(seed: int = 0) -> tuple[Decoder, Program]:
    torch.manual_seed(seed)
    model = Decoder()
    return model, captured_of(model)


def captured_of(model: Decoder) -> Program:
    inputs = [
        Input("input_ids", ("tokens",), torch.int32),
        Input("positions", ("tokens",), torch.int32),
        Input("logit_rows", ("requests",), torch.int32),
    ]
    return capture_callable(model, model, inputs, {"tokens": (1, 64), "requests": (1, 8)}, results=("logits",))


def run_eager(program: Program, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The program in eager torch: what comes out, by name."""
    given = {**program.tensors, **inputs}
    with torch.no_grad():
        outputs = program.module(*[given[argument.name] for argument in program.arguments])
    return {result.name: output for result, output in zip(program.results, outputs, strict=True)}
