"""Tokens of the step before: the program takes them from its own state, and keeps those that it samples."""

from __future__ import annotations

import torch
from step_decoder import VOCABULARY, captured, run_eager
from test_step_passes import neutral

from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.feed import Feed
from fxhlo.passes.fx.sample import Sample
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program

SAMPLE = Sample(logprobs=1, bias=2, seen=4)


def step(program: Program, ids: list[int], **others: list[int]) -> dict[str, torch.Tensor]:
    """A step of two requests, each with one token of `ids`, or of others where `others` says so."""
    given = {"input_ids": ids, "positions": [3, 5], "logit_rows": [0, 1], **others}
    inputs = {name: torch.tensor(values, dtype=torch.int32) for name, values in given.items()}
    return run_eager(program, {**inputs, **neutral(program, inputs)})


def test_the_next_step_takes_the_tokens_where_the_host_has_none() -> None:
    _, program = captured()
    plain, fed = run([SAMPLE], program, [verify]), run([SAMPLE, Feed(5), Donate()], program, [verify])
    assert fed.results[-1].updates == "last_tokens"
    last = [11, 12, 13, 14, 15]
    first = step(fed, [7, 8], fed=[-1, -1], last_rows=[4, 2], last_tokens=last)
    right = step(plain, [7, 8])["tokens"].tolist()
    assert first["tokens"].tolist() == right
    kept = first["last_tokens.updated"]
    assert kept.dtype == torch.int32
    assert kept.tolist() == [11, 12, right[1], 14, right[0]]
    second = step(fed, [VOCABULARY - 1, 9], fed=[4, -1], last_rows=[-1, 0], last_tokens=kept.tolist())
    right = step(plain, [right[0], 9])["tokens"].tolist()
    assert second["tokens"].tolist() == right
    assert second["last_tokens.updated"].tolist() == [right[1], *kept.tolist()[1:]]
