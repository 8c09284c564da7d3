"""Which layers a stage of a pipeline has (`--pipeline-parallel-size`), and what that is of the weights and caches.

Comes in: a model of one device, with or without weights. Goes out: `Stages`, by which the step's Program is cut (passes/stages.py). Guaranteed:
layers are shared out as vLLM does it, VLLM_PP_LAYER_PARTITION included; a stage has one layer at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ...passes.hlo.plan import Plan
from ..core.errors import UnsupportedError
from . import compat
from .states.spec import StateSpec

OPTION = "--pipeline-parallel-size"


@dataclass(frozen=True)
class Stages:
    """layers: path of each layer's module, such as "model.layers.3" -> its stage."""

    count: int = 1
    layers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, layers: int, count: int) -> Stages:
        """layers: as many as the model's config says. Raises UnsupportedError where they cannot be shared out, or are not found."""
        if count == 1:
            return ONE_STAGE
        stages = shared_out(layers, count)
        found = [
            path
            for path, one in model.named_modules()
            if isinstance(one, nn.ModuleList) and len(one) == layers and path
        ]
        if not found:
            raise UnsupportedError(
                f"vLLM's {type(model).__name__} has no list of its {layers} layers, by which a pipeline would be cut",
                next_step=f"leave out {OPTION}",
            )
        return cls(count, {f"{found[0]}.{layer}": stage for layer, stage in enumerate(stages)})

    def of_name(self, name: str) -> int | None:
        """The stage of a weight's or a layer's name; None for what is in no layer."""
        parts = name.split(".")
        paths = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.layers[path] for path in paths if path in self.layers), None)

    def homes(self, names: Iterable[str]) -> dict[str, int]:
        """The stage that each weight is read by, as far as its name says: its layer's; what is in no layer is read before all layers or
        after them, as it stands in the model. names: of all weights, in the model's order."""
        found, outside = {}, 0
        for name in names:
            stage = self.of_name(name)
            outside = outside if stage is None else self.count - 1
            found[name] = outside if stage is None else stage
        return found

    def weights(self, model: nn.Module, bytes_of: Callable[[str, nn.Parameter], int]) -> int:
        """Bytes of the weights of the stage with the most. What is in no layer, such as embedding and head, counts for first and last."""
        sums = [0] * self.count
        for name, parameter in model.named_parameters():
            stage = self.of_name(name)
            for one in {0, self.count - 1} if stage is None else {stage}:
                sums[one] += bytes_of(name, parameter)
        return max(sums)

    def share(self, states: Iterable[StateSpec], sizes: Mapping[str, int]) -> float:
        """The part of all states that the stage with the most of them keeps."""
        sums = [0] * self.count
        for state in states:
            sums[self.of_name(state.layer) or 0] += state.bytes_in(sizes)
        return max(sums) / sum(sums) if any(sums) else 1.0

    def plans(self, plan: Plan) -> tuple[Plan, ...]:
        """How the weights and states of each stage lie: on devices of its own. plan: of the first."""
        return tuple(plan.at(stage * plan.mesh.devices) for stage in range(self.count))

    def to_json(self) -> list[int]:
        """The stage of each layer, for a cache's key."""
        return list(self.layers.values())


ONE_STAGE = Stages()


def shared_out(layers: int, count: int) -> Sequence[int]:
    """The stage of each of so many layers, which config.json is enough for. Raises UnsupportedError where they cannot be shared out."""
    if layers < count:
        raise UnsupportedError(
            f"{count} stages of a pipeline have no layer each: the model has {layers}",
            next_step=f"lower {OPTION} to {layers} at most",
        )
    found = compat.layers_of_stages(layers, count)
    if empty := sorted(set(range(count)) - set(found)):
        raise UnsupportedError(
            f"stage {empty[0]} of the pipeline has no layer", next_step="correct or unset VLLM_PP_LAYER_PARTITION"
        )
    return found
