"""How a module's results nest, from torch's tree to a Structure that needs no torch.

Tuples, lists, dicts and named tuples stay what they are. Any other container that is registered with torch, such as a
dataclass or transformers' ModelOutput, becomes a dict by its fields' names; one without names becomes a list.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from itertools import count
from typing import Any

from ...passes.torch_private import child_names, pytree
from ...runtime.core.structure import Structure


def structure_of(spec: pytree.TreeSpec) -> Structure:
    """The structure whose results are numbered as the leaves are."""
    return _structure(spec, count())


def _structure(spec: pytree.TreeSpec, numbers: Iterator[int]) -> Structure:
    if spec.is_leaf():
        return Structure("result", next(numbers))
    children = tuple(_structure(child, numbers) for child in spec.children())
    if spec.type is tuple:
        return Structure("tuple", children=children)
    if spec.type in (list, deque):
        return Structure("list", children=children)
    if spec.type is namedtuple:
        return Structure("namedtuple", name=spec.context.__name__, keys=tuple(spec.context._fields), children=children)
    if spec.type in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if spec.type is defaultdict else spec.context
        return Structure("dict", keys=tuple(map(_key, keys)), children=children)
    names = child_names(spec)
    if names is None:
        return Structure("list", children=children)
    return Structure("dict", keys=names, children=children)


def _key(key: Any) -> str | int | float | bool | None:
    return key if isinstance(key, str | int | float | bool | None) else str(key)


def renumbered(structure: Structure, places: dict[int, int]) -> Structure:
    """The structure with other numbers for its results; None stands where a number has no place."""
    if structure.kind == "result":
        return Structure("result", places[structure.index]) if structure.index in places else Structure("none")
    children = tuple(renumbered(child, places) for child in structure.children)
    return Structure(structure.kind, 0, structure.name, structure.keys, children)


def names_in(structure: Structure) -> dict[int, str]:
    """The names of the results that stand in dicts and named tuples: `logits`, `cache.0`."""
    return {index: ".".join(path) for path, index in _paths(structure, ()) if any(not part.isdigit() for part in path)}


def _paths(structure: Structure, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if structure.kind == "result":
        yield path, structure.index
    for place, child in enumerate(structure.children):
        yield from _paths(child, (*path, str(structure.keys[place]) if structure.keys else str(place)))
