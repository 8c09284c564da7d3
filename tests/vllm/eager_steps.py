"""Programs that are run in eager torch, in place of an engine's compiled ones: the same graph after all passes, and no compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxhlo.lowering.emit.emit import emit
from fxhlo.passes.pipeline import run
from fxhlo.runtime.vllm.states.groups import placed
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.kinds import Bucket, select
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.plan import make_plan
from fxhlo.runtime.vllm.steps.programs import of_program


@dataclass
class Ran:
    """A pending.PendingStep whose results are there at once."""

    results: dict[str, torch.Tensor]

    def hidden(self) -> torch.Tensor:
        return self.results["hidden"]


class EagerSteps:
    """A steps.Steps. used: the program of each step."""

    last: EagerSteps
    depth = 1

    def __init__(
        self,
        config: Any,
        model: torch.nn.Module,
        build: Callable[[], torch.nn.Module],
        states: Sequence[Any],
        groups: Sequence[Any],
        sizes: Mapping[str, int],
        progress: Callable[[str], None],
        placement: Any = None,
        bundle: Any = None,
        stages: Any = None,
    ) -> None:
        options = StepOptions.of(config, groups)
        self.program = run(step_passes(options), capture_step(config, build()))
        self.buckets = make_plan(options.limits, Costs()).buckets
        self.state_slots = any(spec.rows == "slots" for spec in states)
        signatures = [
            emit(self.program, of_program(self.program, {**sizes, **dict(bucket.sizes)})).signature
            for bucket in self.buckets[:2]
        ]
        self.inputs = StepInputs.of(options, step_passes(options)).taken_by(signatures)
        for bucket, signature in zip(self.buckets, signatures, strict=False):
            self.inputs.check(bucket, signature)
        tensors = {**self.program.tensors, **dict(model.named_parameters()), **dict(model.named_buffers())}
        self._given = {one.name: tensors[one.name].detach() for one in self.program.arguments if one.kind in KEPT}
        for name, tensor in self._given.items():
            assert not tensor.is_meta, name
        self._given |= {
            spec.name: torch.zeros(spec.shape_in(sizes), dtype=getattr(torch, spec.dtype))
            for spec in placed(states, groups)
        }
        self.used: list[Bucket] = []
        EagerSteps.last = self

    def select(self, tokens: int, requests: int) -> Bucket:
        return select(self.buckets, Bucket.of(tokens=tokens, requests=requests))

    def start(self, bucket: Bucket, inputs: Mapping[str, np.ndarray]) -> Ran:
        self.used.append(bucket)
        shapes = self.inputs.frame(bucket).shapes
        assert {name: values.shape for name, values in inputs.items()} == shapes
        given = {**self._given, **{name: torch.from_numpy(values) for name, values in inputs.items()}}
        with torch.no_grad():
            found = self.program.module(*(given[one.name] for one in self.program.arguments))
        results = {one.name: value for one, value in zip(self.program.results, found, strict=True)}
        self._given |= {
            name.removesuffix(".updated"): value for name, value in results.items() if name.endswith(".updated")
        }
        return Ran(results)


KEPT = ("weight", "buffer", "constant")
