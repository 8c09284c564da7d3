"""LayerKind: describes a kind of vLLM layer that is not plain ATen."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ...core.errors import UnsupportedError
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
class LayerKind:
    """is_one: whether a layer of vLLM's static forward context is of this kind. states: (its name, the layer, tokens a
    block) -> its states, if any. replacements: made when a model is first built, since they import vLLM's layers. splits: whether
    meshes.py knows how the layer and its states lie on several devices."""

    name: str
    is_one: Callable[[object], bool]
    states: Callable[..., tuple[StateSpec, ...]]
    replacements: Callable[[], Iterable[Replacement]] = nothing
    splits: bool = False
