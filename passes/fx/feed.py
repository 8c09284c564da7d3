"""Feeds each sampled token to the next step on the device: the next step may start before the host has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..base import Pass
from ..edit import inline, outputs_of
from ..extension import Extension, extended
from ..program import Program
from ..step_inputs import FEED, RESULTS, TOKENS, StepInput

LAST_TOKENS = "last_tokens"
"""The state, int32 [rows]: the token that each row of the batch sampled last."""


@dataclass(frozen=True)
class Feed(Pass):
    """rows: of the batch: as many as requests may run at once; 0 leaves the step as it is."""

    rows: int = 0

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return FEED if self.rows else ()

    def __call__(self, program: Program) -> Program:
        if not self.rows:
            return program
        assert program.results[0].name == RESULTS[0], program.results[0]

        def edit(graph: fx.Graph, extension: Extension) -> None:
            (ids,) = extension.inputs(TOKENS[:1], {})
            fed, rows = extension.inputs(FEED, {})
            users = list(ids.users)
            last = extension.state(LAST_TOKENS, (self.rows,), torch.int32)
            with graph.inserting_before(last.next):
                known = inline(graph, _with_fed, (ids, fed, last), {}, origin=ids)
            for user in users:
                user.replace_input_with(ids, known)
            tokens = outputs_of(graph)[0]
            with graph.inserting_before(graph.output_node()):
                extension.update(LAST_TOKENS, inline(graph, _kept, (last, rows, tokens), {}, origin=tokens))

        return extended(program, edit)


def _with_fed(ids: Tensor, fed: Tensor, last: Tensor) -> Tensor:
    return torch.where(fed >= 0, last.index_select(0, fed.clamp(min=0)), ids)


def _kept(last: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """`last` with tokens[i] in row rows[i]. By comparison: XLA writes a scatter's elements one after the other."""
    chosen = rows == torch.arange(last.shape[0], dtype=torch.int32)[:, None]
    return torch.where(chosen.any(1), torch.where(chosen, tokens, 0).sum(1, dtype=torch.int32), last)
