"""Appends sampling to the step: its results are token ids, and log-probabilities if requested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import getitem
from typing import Literal

import torch
from torch import fx

from ..base import Pass
from ..edit import add_step_inputs, call, inline, outputs_of
from ..program import Argument, Program, Result
from ..step_inputs import DRAW, LOGPROBS, PROCESSING, RAW, RESULTS, StepInput, mask_words

aten = torch.ops.aten


Mode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
"""vLLM's logprobs_mode: which values a request sees."""


@dataclass(frozen=True)
class Sample(Pass):
    """logprobs: how many of the most probable tokens a request may ask for. bias: how many logit biases.
    seen: how many distinct tokens a request's penalties can count. mode: vLLM's logprobs_mode, which values are shown."""

    logprobs: int = 20
    bias: int = 1024
    seen: int = 8192
    mode: Mode = "raw_logprobs"

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return (*PROCESSING, *DRAW, *LOGPROBS)

    def __call__(self, program: Program) -> Program:
        assert program.results[0].name == "logits", program.results[0]
        arguments = list(program.arguments)

        def edit(graph: fx.Graph) -> None:
            logits, *others = outputs_of(graph)
            requests, vocabulary = logits.meta["val"].shape
            sizes = {"requests": requests, "biases": self.bias, "seen": self.seen, "mask_words": mask_words(vocabulary)}
            inputs = add_step_inputs(graph, self.inputs, sizes)
            arguments.extend(Argument(name, "input") for name in inputs)
            with graph.inserting_before(graph.output_node()):
                processed = call(
                    graph,
                    torch.ops.fxhlo.process_logits.default,
                    (logits, *[inputs[one.name] for one in PROCESSING]),
                    origin=logits,
                )
                tokens = call(
                    graph,
                    torch.ops.fxhlo.sample.default,
                    (processed, *[inputs[one.name] for one in DRAW]),
                    origin=logits,
                )
                shown = self._shown(graph, logits, processed, inputs)
                chosen = call(
                    graph,
                    torch.ops.fxhlo.logprobs.default,
                    (shown, tokens, *[inputs[one.name] for one in LOGPROBS]),
                    {"count": self.logprobs},
                    origin=logits,
                )
                parts = [call(graph, getitem, (chosen, index), origin=logits) for index in range(3)]
                if self.mode.endswith("_logits"):
                    parts[1] = inline(graph, _at, (shown, parts[0], inputs["grammar_mask"]), {}, origin=logits)
            graph.output_node().args = ((tokens, *parts, *others),)

        edited = program.edited(edit)
        results = (*map(Result, RESULTS), *program.results[1:])
        return replace(edited, arguments=tuple(arguments), results=results)

    def _shown(self, graph: fx.Graph, raw: fx.Node, processed: fx.Node, inputs: dict[str, fx.Node]) -> fx.Node:
        """The logits [requests, vocabulary] whose log-probabilities are returned: the raw ones, or the processed ones that the draw uses."""
        if not self.mode.startswith("processed_"):
            return raw
        arguments = [inputs[name] for name in ("temperature", "top_k", "top_p", "min_p", "logprobs_enabled")]
        filtered = call(graph, torch.ops.fxhlo.filter_logits.default, (processed, *arguments), origin=raw)
        return inline(graph, _unless_prompt, (inputs["logprobs_enabled"], raw, filtered), {}, origin=raw)


def _unless_prompt(enabled: torch.Tensor, raw: torch.Tensor, filtered: torch.Tensor) -> torch.Tensor:
    return torch.where(enabled == RAW, raw.to(torch.float32), filtered)


def _at(logits: torch.Tensor, ids: torch.Tensor, grammar_mask: torch.Tensor) -> torch.Tensor:
    """The logits of the tokens that `fxhlo.logprobs` returned. ids: int32 [requests, n + 1] -> float32 [requests, n + 1]."""
    words = grammar_mask.gather(1, (ids >> 5).to(torch.int64))
    found = logits.gather(1, ids.to(torch.int64)).to(torch.float32)
    return torch.where((words >> (ids & 31)) & 1 != 0, found, float("-inf"))
