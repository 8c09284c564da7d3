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
from .streaming import Stream, restore


class Placement:
    """Where the arrays of an engine go: the device of a target, or the devices of a plan's mesh."""

    def __init__(self, target: Target, plan: Plan = ONE_DEVICE) -> None:
        self.target = target
        self.plan = plan
        self.device = pjrt.device(target, mesh=plan.mesh)
        self._streamed: dict[str, pjrt.Buffer] = {}
        self._taken: set[str] = set()
        self._kept: dict[tuple[bytes, tuple[int, ...], str], pjrt.Buffer] = {}

    def stream(self) -> Stream:
        """Takes the weights of a model while it is loaded; `take` has what came of it. For a mesh, or a device that is not the host."""
        return Stream(self._put, self._get)

    def _put(self, name: str, values: np.ndarray) -> pjrt.Buffer:
        """A weight as the plan says, made a device's part at a time."""
        mesh, split = self.plan.mesh, self.plan.split(name)
        if mesh.devices == 1:
            return self.device.put_shared(values)
        shape = split.shape(values.shape, mesh)
        return self.device.put_parts(shape, lambda number: split.piece(values, mesh, number), split.sharding)

    def _get(self, name: str, buffer: pjrt.Buffer) -> np.ndarray:
        """The weight in the model's order, on the host."""
        return self.plan.split(name).restored(pjrt.get(buffer), self.plan.mesh)

    def take(self, weights: Mapping[str, pjrt.Buffer]) -> None:
        """Keeps weights that are on the device already, by name, for `weights`."""
        self._streamed.update(weights)

    def give_back(self, model: torch.nn.Module, reads: torch.nn.Module) -> None:
        """Brings weights that were streamed back to the host, into `model`: those that no program took, and those that `reads`, a part of
        the model that computes on the host, has too."""
        own = {id(one) for one in reads.parameters()}
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta and name in self._streamed and (name not in self._taken or id(parameter) in own):
                restore(model, parameter, self._get(name, self._streamed[name]))

    def weights(self, arguments: Iterable[Argument], model: torch.nn.Module) -> dict[str, pjrt.Buffer]:
        """Returns a device buffer per argument, by name, of the model's parameters and buffers, whose memory must not change."""
        arguments = list(arguments)
        self._taken.update(argument.name for argument in arguments)
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
        lying = [(self.plan.shape(spec.name, spec.shape_in(sizes)), self.plan.sharding(spec.name)) for spec in specs]
        return [
            self.device.zeros(shape, spec.dtype, sharding) for spec, (shape, sharding) in zip(specs, lying, strict=True)
        ]

    def kept(self, values: np.ndarray) -> pjrt.Buffer:
        """Places a constant input once; programs with inputs of that shape and value share it."""
        key = (values.flat[0].tobytes(), values.shape, values.dtype.name)
        if key not in self._kept:
            self._kept[key] = self.device.put(values)
        return self._kept[key]


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return memory_of(tensor, dtype_of(str(tensor.dtype).removeprefix("torch.")))
