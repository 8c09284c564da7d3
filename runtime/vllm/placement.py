"""Placement: puts weights, states and neutral inputs on the device, one array at a time.

Where the device is the host a weight's memory is shared, not copied; all programs of an engine take the same buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from ...passes.arrays import memory_of
from ...passes.hlo.plan import ONE_DEVICE, Plan
from ..core import pjrt
from ..core.dtypes import dtype_of
from ..core.errors import FxhloError
from ..core.sharding import Sharding, Split
from ..core.signature import Argument
from ..core.targets import Target
from .owned import Owned, merged
from .states.spec import StateSpec


class Placement:
    """Where the arrays of an engine, or of one stage of its pipeline, go: the device of a target, or the devices of a plan's mesh."""

    def __init__(self, target: Target, plan: Plan = ONE_DEVICE) -> None:
        self.target = target
        self.plan = plan
        self.device = pjrt.device(target, mesh=plan.mesh)
        self._streamed: dict[str, pjrt.Buffer] = {}
        self._taken: set[str] = set()
        self._kept: dict[tuple[bytes, tuple[int, ...], str], pjrt.Buffer] = {}

    def stream_in(self, name: str, values: np.ndarray) -> pjrt.Buffer:
        """Places a weight, made a device's part at a time, as the plan says, or as it comes from the files until it is taken. The array's
        memory may be freed once the buffer is ready."""
        mesh, split = self.plan.mesh, self._arriving(name, values.shape)
        if mesh.devices == 1:
            return self.device.put(values) if self.device.is_host else self.device.put_shared(values)
        shape = split.shape(values.shape, mesh)
        return self.device.put_parts(shape, lambda number: split.piece(values, mesh, number), split.sharding)

    def owned(self, name: str, shape: Sequence[int]) -> Owned | None:
        """What the devices that are here hold of a weight; None for all of it."""
        mesh, split = self.plan.mesh, self._arriving(name, shape)
        if not self.several_hosts:
            return None
        return merged(shape, (split.stretches(shape, mesh, number) for number in self.device.numbers))

    def stream_out(self, name: str, buffer: pjrt.Buffer) -> np.ndarray:
        """The weight in the model's order, on the host; where other hosts have parts of it, all of them call this."""
        return self.plan.split(name).restored(self.device.whole(buffer), self.plan.mesh)

    def copied(self, name: str, buffer: pjrt.Buffer) -> pjrt.Buffer:
        """A copy of a weight that lies in the same way on another stage's devices."""
        return self.device.received(buffer, self.plan.sharding(name))

    @property
    def several_hosts(self) -> bool:
        """Whether some of the plan's devices are of other hosts."""
        return len(self.device.numbers) < self.plan.mesh.devices

    def _arriving(self, name: str, shape: Sequence[int]) -> Split:
        """How a weight lies until it is taken: where hosts have parts of each of its rows, by rows, which follow each other in the files."""
        split = self.plan.split(name)
        first = next((at for at, axes in enumerate(split.sharding.dimensions) if axes), 0)
        if not self.several_hosts or split.parts:
            return split
        parts = split.sharding.parts(self.plan.mesh)
        rows = next((at for at in range(first) if shape[at] % parts == 0), None)
        if rows is None:
            return split
        axes = tuple(axis for every in split.sharding.dimensions for axis in every)
        return Split(Sharding(tuple(axes if at == rows else () for at in range(len(shape)))))

    def take(self, name: str, weight: pjrt.Buffer) -> None:
        """Keeps a weight that is on the device already, for `weights`; where hosts had other parts of it in the files, all of them call this."""
        sharding = self.plan.sharding(name)
        if self.several_hosts and not self.device.holds(weight, sharding):
            weight = self.device.received(weight, sharding)
            weight.block_until_ready()  # what it was made of is freed before the next
        self._streamed[name] = weight

    def streamed(self, name: str) -> pjrt.Buffer | None:
        """A weight that was taken."""
        return self._streamed.get(name)

    def release(self, name: str) -> None:
        """Forgets a weight that was taken."""
        del self._streamed[name]

    def takes(self, name: str) -> bool:
        """Whether a program takes the weight."""
        return name in self._taken

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
