"""Makes sampling part of the step: the logits become token ids, and log-probabilities where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx

from ..base import Pass
from ..edit import add_placeholder, call, inline
from ..program import Argument, Program, Result

aten = torch.ops.aten

RAW = 2
"""Of `logprobs_enabled`: 0 off, 1 as the mode says, 2 of the raw logits, which is what vLLM shows of prompts in every mode."""


@dataclass(frozen=True)
class Sample(Pass):
    """logprobs: how many of the most probable tokens a request may ask for. bias: how many logit biases.
    seen: how many distinct tokens a request's penalties can count. mode: vLLM's logprobs_mode, which values are shown."""

    logprobs: int = 20
    bias: int = 1024
    seen: int = 8192
    mode: str = "raw_logprobs"

    def __call__(self, program: Program) -> Program:
        assert program.results[0].name == "logits", program.results[0]
        arguments = list(program.arguments)

        def edit(graph: fx.Graph) -> None:
            output = next(node for node in graph.nodes if node.op == "output")
            logits = output.args[0][0]
            requests, vocabulary = logits.meta["val"].shape
            inputs = {}
            for name, (shape, dtype) in self.inputs(requests, vocabulary).items():
                inputs[name] = add_placeholder(graph, name, shape, dtype)
                arguments.append(Argument(name, "input"))
            with graph.inserting_before(output):
                processed = call(
                    graph,
                    torch.ops.fxhlo.process_logits.default,
                    (logits, *[inputs[name] for name in PROCESSING]),
                    origin=logits,
                )
                tokens = call(
                    graph,
                    torch.ops.fxhlo.sample.default,
                    (processed, *[inputs[name] for name in SAMPLING]),
                    origin=logits,
                )
                shown = self._shown(graph, logits, processed, inputs)
                chosen = call(
                    graph,
                    torch.ops.fxhlo.logprobs.default,
                    (shown, tokens, inputs["logprobs_enabled"]),
                    {"count": self.logprobs},
                    origin=logits,
                )
                parts = [call(graph, getitem, (chosen, index), origin=logits) for index in range(3)]
                if self.mode.endswith("_logits"):
                    parts[1] = inline(graph, _at, (shown, parts[0]), {}, origin=logits)
            output.args = ((tokens, *parts, *output.args[0][1:]),)

        edited = program.edited(edit)
        results = [Result(name) for name in ("tokens", "logprob_ids", "logprob_values", "logprob_ranks")]
        results += program.results[1:]
        return Program(
            edited.module,
            tuple(arguments),
            tuple(results),
            program.dims,
            program.guards,
            program.tensors,
            program.name,
            program.notes,
        )

    def _shown(self, graph: fx.Graph, raw: fx.Node, processed: fx.Node, inputs: dict[str, fx.Node]) -> fx.Node:
        """The logits [R, V] that `fxhlo.logprobs` looks at: the raw ones, or those that the draw sees."""
        if not self.mode.startswith("processed_"):
            return raw
        arguments = [inputs[name] for name in ("temperature", "top_k", "top_p", "min_p", "logprobs_enabled")]
        filtered = call(graph, torch.ops.fxhlo.filter_logits.default, (processed, *arguments), origin=raw)
        return inline(graph, _unless_prompt, (inputs["logprobs_enabled"], raw, filtered), {}, origin=raw)

    def inputs(self, requests: int | torch.SymInt, vocabulary: int) -> dict[str, tuple[tuple, torch.dtype]]:
        """Shape and dtype of each input that sampling adds; kernels/{process_logits,sample,logprobs} say what they mean."""
        row, integers, floats = (requests,), torch.int32, torch.float32
        return {
            "flags": ((3,), integers),
            "allowed_mask": ((requests, (vocabulary + 31) // 32), integers),
            "bias_ids": ((requests, self.bias), integers),
            "bias_values": ((requests, self.bias), floats),
            "seen_ids": ((requests, self.seen), integers),
            "seen_counts": ((requests, self.seen), integers),
            "repetition_penalty": (row, floats),
            "frequency_penalty": (row, floats),
            "presence_penalty": (row, floats),
            "temperature": (row, floats),
            "top_k": (row, integers),
            "top_p": (row, floats),
            "min_p": (row, floats),
            "seeds": ((requests, 2), integers),
            "steps": (row, integers),
            "logprobs_enabled": ((), integers),
        }


def _unless_prompt(enabled: torch.Tensor, raw: torch.Tensor, filtered: torch.Tensor) -> torch.Tensor:
    return torch.where(enabled == RAW, raw.to(torch.float32), filtered)


def _at(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The logits themselves where `fxhlo.logprobs` found something: ids int32 [R, n + 1] -> float32 [R, n + 1]."""
    return logits.gather(1, ids.to(torch.int64)).to(torch.float32)


PROCESSING = (
    "flags", "allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seeds", "steps")
