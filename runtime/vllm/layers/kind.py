"""LayerKind: describes a kind of vLLM layer that is not plain ATen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..states.spec import StateSpec


@dataclass(frozen=True)
class LayerKind:
    """is_one: whether a layer of vLLM's static forward context is of this kind. state: (its name, the layer, tokens a
    block) -> its state."""

    name: str
    is_one: Callable[[object], bool]
    state: Callable[..., StateSpec]
