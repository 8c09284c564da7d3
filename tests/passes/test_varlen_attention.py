"""Bidirectional attention of a layer gets the bounds of the requests; causal attention, and attention of no layer, stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.varlen_attention import VarlenAttention
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program
from fxhlo.runtime.core.errors import UnsupportedError

OPS = torch.ops.fxhlo


def captured(slopes: torch.Tensor | None = None, **named: Any) -> Program:
    """Two layers of attention; the second knows nothing of ALiBi."""
    torch.manual_seed(0)
    weight = torch.nn.Linear(16, 16)

    def attend(rows: torch.Tensor, slopes: torch.Tensor | None, **named: Any) -> torch.Tensor:
        heads = rows.view(-1, 2, 8)
        fixed = {"scale": 0.3, "sliding_window": 0, "soft_cap": 0.0, "layer": "encoder.0", "causal": False}
        return OPS.attention(heads, heads, heads, None, slopes, **fixed | named).reshape(rows.shape)

    def step(rows: torch.Tensor) -> torch.Tensor:
        return attend(weight(attend(rows, slopes, **named)), None, layer="encoder.1", sliding_window=3, soft_cap=2.0)

    return capture_callable(step, weight, [Input("rows", ("tokens", 16), torch.float32)], {"tokens": (1, 64)})


def results(program: Program, **inputs: torch.Tensor) -> torch.Tensor:
    given = {**program.tensors, **inputs}
    with torch.no_grad():
        return program.module(*(given[one.name] for one in program.arguments))[0]


def ops(program: Program) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function" and "fxhlo" in str(node.target)]


def test_requests_side_by_side_are_each_alone() -> None:
    before = captured()
    after = run([PagedAttention(), VarlenAttention()], before, [verify])
    assert ops(after) == [OPS.varlen_attention.default] * 2
    assert [one.name for one in after.arguments if one.kind == "input"] == ["rows", "query_start_loc"]
    assert [dim.name for dim in after.dims] == ["tokens", "requests"]
    assert not any(one.kind == "state" for one in after.arguments)
    torch.manual_seed(1)
    texts = [torch.randn(length, 16) for length in (5, 1, 9)]
    starts = torch.tensor([0, 5, 6, 15, 15], dtype=torch.int32)
    found = results(after, rows=torch.cat([*texts, torch.full((3, 16), float("nan"))]), query_start_loc=starts)
    for begin, text in zip(starts.tolist(), texts, strict=False):
        torch.testing.assert_close(found[begin : begin + len(text)], results(before, rows=text))


def test_a_causal_layer_gets_a_cache_beside_it() -> None:
    after = run([PagedAttention(), VarlenAttention()], captured(causal=True), [verify])
    assert ops(after) == [OPS.ragged_paged_attention.default, OPS.varlen_attention.default]
    names = [one.name for one in after.arguments if one.kind == "input"]
    assert names == ["rows", "slot_mapping", "block_tables", "seq_lens", "query_start_loc"], "both have the same bounds"


def test_attention_of_no_layer_is_of_one_sequence() -> None:
    after = run([VarlenAttention()], captured(layer=""), [verify])
    assert ops(after) == [OPS.attention.default, OPS.varlen_attention.default]


def test_bidirectional_attention_with_alibi_is_refused() -> None:
    program = captured(torch.tensor([0.1, 0.2]))
    with pytest.raises(UnsupportedError, match="bidirectional attention with ALiBi"):
        VarlenAttention()(program)
