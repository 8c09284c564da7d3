"""Makes sampling part of the step: the logits become token ids, and log-probabilities where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx

from ..base import Pass
from ..edit import add_placeholder, call
from ..program import Argument, Program, Result

aten = torch.ops.aten


@dataclass(frozen=True)
class Sample(Pass):
    """logprobs: how many of the most probable tokens a request may ask for. bias: how many logit biases.
    seen: how many distinct tokens a request's penalties can count."""

    logprobs: int = 20
    bias: int = 1024
    seen: int = 8192

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
                chosen = call(
                    graph,
                    torch.ops.fxhlo.logprobs.default,
                    (logits, tokens, inputs["logprobs_enabled"]),
                    {"count": self.logprobs},
                    origin=logits,
                )
                parts = [call(graph, getitem, (chosen, index), origin=logits) for index in range(3)]
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


PROCESSING = (
    "flags", "allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seeds", "steps")
