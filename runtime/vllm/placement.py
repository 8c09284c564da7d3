"""Placement: puts weights, states and neutral inputs on the device, one array at a time.

Where the device is the host a weight's memory is shared, not copied; all programs of an engine take the same buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from ...passes.arrays import memory_of
from ...passes.hlo.plan import ONE_DEVICE, Plan
from ..core import pjrt
from ..core.dtypes import dtype_of
from ..core.errors import FxhloError
from ..core.signature import Argument
from ..core.targets import Target
from .states.spec import StateSpec
from .streaming import Stream


class Placement:
    """Where the arrays of an engine go: the device of a target, or the devices of a plan's mesh."""

    def __init__(self, target: Target, plan: Plan = ONE_DEVICE) -> None:
        self.target = target
        self.plan = plan
        self.device = pjrt.device(target, mesh=plan.mesh)
        self._streamed: dict[str, pjrt.Buffer] = {}
        self._kept: dict[tuple[bytes, tuple[int, ...], str], pjrt.Buffer] = {}

    def stream(self) -> Stream:
        """Takes the weights of a model while it is loaded; `take` has what came of it. For a device that is not the host."""
        return Stream(self.device.put_shared)

    def take(self, weights: Mapping[str, pjrt.Buffer]) -> None:
        """Keeps weights that are on the device already, by name, for `weights`."""
        self._streamed.update(weights)

    def weights(self, arguments: Iterable[Argument], model: torch.nn.Module) -> dict[str, pjrt.Buffer]:
        """Returns a device buffer per argument, by name, of the model's parameters and buffers, whose memory must not change."""
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {argument.name: self.weight(argument, tensors) for argument in arguments}

    def weight(self, argument: Argument, tensors: Mapping[str, torch.Tensor]) -> pjrt.Buffer:
        """Places one weight, unless it is there. Raises FxhloError where the model has none of that name, shape and dtype."""
        tensor, streamed = tensors.get(argument.name), self._streamed.get(argument.name)
        found = streamed if streamed is not None else None if tensor is None else _as_numpy(tensor)
        if isinstance(found, np.ndarray) and argument.name in self.plan.weights:
            found = self.plan.weights[argument.name].arranged(found, self.plan.mesh)
        if found is None or (found.shape, found.dtype.name) != (argument.shape, argument.dtype):
            have = "the model has none" if found is None else f"the model's is {found.dtype}{list(found.shape)}"
            raise FxhloError(
                f"the programs take the weight {argument}, and {have}",
                next_step="report this as a bug of fxhlo, with the model's config.json",
            )
        return found if isinstance(found, pjrt.Buffer) else self.device.put_shared(found, argument.sharding)

    def states(self, specs: Iterable[StateSpec], sizes: Mapping[str, int]) -> list[pjrt.Buffer]:
        """Allocates zeros for each state, in order. sizes: of the symbols in the shapes."""
        return [self.device.zeros(spec.shape_in(sizes), spec.dtype, self.plan.sharding(spec.name)) for spec in specs]

    def kept(self, values: np.ndarray) -> pjrt.Buffer:
        """Places a constant input once; programs with inputs of that shape and value share it."""
        key = (values.flat[0].tobytes(), values.shape, values.dtype.name)
        if key not in self._kept:
            self._kept[key] = self.device.put(values)
        return self._kept[key]


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return memory_of(tensor, dtype_of(str(tensor.dtype).removeprefix("torch.")))
