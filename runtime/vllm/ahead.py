"""An engine's programs ahead of the engine: from its config alone, on a machine that needs neither the weights nor the device.

Comes in: vLLM's config and a target. Goes out: `Planned`, whose `programs.make` writes the bundle. Guaranteed: sizes are those that an
engine of this config finds on a device with the target's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.plugins import reserve_cpu_devices
from ..core.targets import Target
from . import compat, memory
from .caches import Caches
from .memory import CacheSizeError, Room
from .model import build_model, layers_of, weight_bytes
from .parallel import hosts_of, of_worker, stages_of
from .stages import Stages
from .steps.programs import Programs


@dataclass(frozen=True)
class Planned:
    """weights, caches: bytes of one device, of a pipeline one of the stage that has the most; caches are all that layers keep between
    steps. room: the device's memory."""

    programs: Programs
    weights: int
    caches: int
    room: Room


def planned(config: compat.VllmConfig, target: Target) -> Planned:
    """Builds the model without weights, and sizes its caches. Raises CacheSizeError where weights or caches do not fit."""
    config = of_worker(config)
    model = build_model(config, weights=False)
    caches = Caches(config, layers_of(model), target)
    plan = caches.plan(model)
    stages = Stages.of(model, config.model_config.get_total_num_hidden_layers(), stages_of(config))
    if target.family == "cpu":
        reserve_cpu_devices(
            plan.mesh.devices * stages.count
        )  # before kernels are lowered, which looks at jax's devices
    room, weights = room_ahead(target), weight_bytes(model, plan)
    if stages.count > 1 and not room.on_host:
        weights = stages.weights(model, lambda name, one: one.nbytes * plan.copies(name))
    everything = room.of_all(plan.mesh.devices, hosts_of(config))
    memory.check_weights(weights, everything)
    groups, num_blocks = caches.ahead(weights, everything, plan, stages)
    sizes = caches.sizes(num_blocks)
    programs = Programs.of(config, model, lambda: model, groups, sizes, target, plan, stages=stages)
    kept = caches.bytes_in(programs.sizes, plan, groups)
    return Planned(programs, weights // plan.mesh.devices, int(kept * caches.share(stages)) // plan.mesh.devices, room)


def room_ahead(target: Target) -> Room:
    """The memory of a device that need not be here; this machine's, where the device is the host."""
    if target.family == "cpu":
        return Room.of_host()
    if target.memory is None:
        raise CacheSizeError(
            f"nothing is known of the memory of {target}",
            next_step="make the bundle on a machine that has one, or for a TPU",
        )
    return Room(target.memory, target.memory, f"a device of {target}")
