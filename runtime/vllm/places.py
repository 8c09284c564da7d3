"""Places: where the arrays of an engine go, stage by stage of its pipeline; without one there is a single stage.

Comes in: a target, how weights and states lie on the first stage's devices, and which layers each stage has. Goes out: a `Placement` a stage.
Guaranteed: a weight that is streamed goes to the devices of the stage that reads it, and is on those of another only where that one reads it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...passes.hlo.plan import ONE_DEVICE, Plan
from ..core.pjrt import Buffer, Device
from ..core.signature import Argument
from ..core.targets import Target
from .placement import Placement
from .stages import ONE_STAGE, Stages
from .streaming import Stream, restore, trim


class Places:
    """plan: of the first stage; the others lie in the same way on devices of their own. model: with parameters or without, whose names say
    where a weight goes first."""

    def __init__(
        self, target: Target, plan: Plan = ONE_DEVICE, stages: Stages = ONE_STAGE, model: torch.nn.Module | None = None
    ) -> None:
        self.target = target
        self.stages = stages
        self.each = [Placement(target, one) for one in stages.plans(plan)]
        self._homes = {} if model is None else stages.homes(name for name, _ in model.named_parameters())

    @property
    def first(self) -> Placement:
        """Of the first stage."""
        return self.each[0]

    @property
    def plan(self) -> Plan:
        """How weights and states lie on the first stage's devices."""
        return self.first.plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        for place, one in zip(self.each, self.stages.plans(plan), strict=True):
            place.plan = one

    @property
    def device(self) -> Device:
        """The first stage's devices."""
        return self.first.device

    def stream(self) -> Stream:
        """Takes the weights of a model while it is loaded; `take` has what came of it."""
        return Stream(
            lambda name, values: self.each[self._home(name)].stream_in(name, values),
            lambda name, buffer: self.each[self._home(name)].stream_out(name, buffer),
            lambda name, shape: self.each[self._home(name)].owned(name, shape),
        )

    def take(self, weights: dict[str, Buffer]) -> None:
        """Keeps weights that are on the devices already, by name, for `weights`; they are taken out of the dictionary, one at a time."""
        for name in list(weights):
            place = self.each[self._home(name)]
            place.take(name, weights.pop(name))
            if place.several_hosts:
                trim()

    def weights(self, arguments: Sequence[Sequence[Argument]], model: torch.nn.Module) -> list[dict[str, Buffer]]:
        """For each stage a device buffer per argument, by name, of the model's parameters and buffers, whose memory must not change."""
        names = [{one.name for one in mine} for mine in arguments]
        for number, place in enumerate(self.each):
            for name in (one.name for one in arguments[number]):
                at = self._home(name)
                found = self.each[at].streamed(name)
                if at == number or found is None:
                    continue
                place.take(name, place.copied(name, found))
                if name not in names[at]:  # nobody reads it there
                    self.each[at].release(name)
                    self._homes[name] = number
        return [place.weights(mine, model) for place, mine in zip(self.each, arguments, strict=True)]

    def give_back(self, model: torch.nn.Module, reads: torch.nn.Module) -> None:
        """Brings weights that were streamed back to the host, into `model`: those that no program took, and those that `reads`, a part of
        the model that computes on the host, has too."""
        own = {id(one) for one in reads.parameters()}
        for name, parameter in list(model.named_parameters()):
            home = self.each[self._home(name)]
            found = home.streamed(name)
            if parameter.is_meta and found is not None and (id(parameter) in own or not home.takes(name)):
                restore(model, parameter, home.stream_out(name, found))

    def _home(self, name: str) -> int:
        """The stage that a weight is streamed to; the last one for what loading made, such as a head."""
        return self._homes.get(name, len(self.each) - 1)
