"""LayerKind: describes a kind of vLLM layer that is not plain ATen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..states.spec import StateSpec


@dataclass(frozen=True)
class Replacement:
    """An attribute `name` of one of vLLM's classes or modules, and what it is while a model is built and captured."""

    owner: Any
    name: str
    value: object


def nothing() -> tuple[Replacement, ...]:
    """No replacements: vLLM has a hook of its own for this kind."""
    return ()


@dataclass(frozen=True)
class LayerKind:
    """is_one: whether a layer of vLLM's static forward context is of this kind. states: (its name, the layer, tokens a
    block) -> its states, if any. replacements: made when a model is first built, since they import vLLM's layers."""

    name: str
    is_one: Callable[[object], bool]
    states: Callable[..., tuple[StateSpec, ...]]
    replacements: Callable[[], Iterable[Replacement]] = nothing
