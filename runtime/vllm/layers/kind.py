"""LayerKind: describes a kind of vLLM layer that is not plain ATen."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ....kernels.partition import groups_of_a_device
from ...core.errors import UnsupportedError
from ...core.mesh import Mesh
from ...core.sharding import Split
from ..states.spec import StateSpec


@dataclass(frozen=True)
class Replacement:
    """An attribute `name` of one of vLLM's classes or modules, and what it is while a model is built and captured."""

    owner: Any
    name: str
    value: object


def replaced_in(module: str, values: Mapping[str, Callable[..., object]]) -> Iterator[Replacement]:
    """Replacements of functions ("name") and methods ("Class.name") of one of vLLM's modules; none where it is not imported: then the
    model, whose own module is, has no use for it.

    Raises UnsupportedError where one takes other parameters than the function that stands in for it.
    """
    found = sys.modules.get(module)
    if found is None:
        return
    for path, value in values.items():
        *owners, name = path.split(".")
        owner: Any = reduce(getattr, owners, found)
        original, skipped = getattr(owner, name), len(owners)  # `self` has another name in ours
        theirs, ours = (list(inspect.signature(one).parameters)[skipped:] for one in (original, value))
        if original is not value and theirs != ours:
            raise UnsupportedError(
                f"vLLM's {module}.{path} takes {', '.join(theirs)}, and fxhlo replaces one that takes {', '.join(ours)}",
                next_step="install a version of vLLM that fxhlo was tried with (docs/vllm_contract.md)",
            )
        yield Replacement(owner, name, value)


def nothing() -> tuple[Replacement, ...]:
    """No replacements: vLLM has a hook of its own for this kind."""
    return ()


@dataclass(frozen=True)
class Devices:
    """The devices of a mesh, for rules of how a layer lies on them. all: the axes of the mesh."""

    mesh: Mesh

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.mesh.axes)

    def dividing(self, count: int) -> tuple[str, ...]:
        """The axes that split `count` things: all, or none where the devices do not divide them; each device has all of them then."""
        return self.all if count % self.mesh.devices == 0 else ()

    def sharing(self, groups: int, heads: int) -> tuple[str, ...]:
        """The axes that split groups of heads: all, or none where each device takes those that its heads read. Raises UnsupportedError."""
        devices = self.mesh.devices
        if heads % devices == 0 and groups_of_a_device(groups, heads, devices) is None:
            raise UnsupportedError(
                f"{devices} devices have {heads // devices} of {heads} heads each, and {heads // groups} heads share one of {groups} groups: "
                "no device has the heads of whole groups, nor heads of one group alone",
                next_step=f"take a --tensor-parallel-size that divides {groups}, or a multiple of it",
            )
        return self.dividing(groups)


Splits = Callable[[Any, Devices], Mapping[str, Split]]
"""(a layer, the devices) -> how its parameters, by their paths within the layer, and its states, by what they are called, lie. What it
leaves out lies by the rules for vLLM's linear layers (meshes.py)."""


def by_linear_layers(layer: Any, devices: Devices) -> Mapping[str, Split]:
    """The rule of a kind whose parameters are those of vLLM's linear layers."""
    return {}


@dataclass(frozen=True)
class LayerKind:
    """is_one: whether a layer of vLLM's static forward context is of this kind. states: (its name, the layer, tokens a
    block) -> its states, if any. replacements: made when a model is first built, since they import vLLM's layers. splits: how
    the layer and its states lie on several devices; None: a mesh is refused."""

    name: str
    is_one: Callable[[object], bool]
    states: Callable[..., tuple[StateSpec, ...]]
    replacements: Callable[[], Iterable[Replacement]] = nothing
    splits: Splits | None = None
