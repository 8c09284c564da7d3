"""Converts the nesting of a module's results from torch's TreeSpec to a Structure, which needs no torch.

Tuples, lists, dicts and named tuples keep their type. Every other container that is registered with torch, such as a
dataclass or transformers' ModelOutput, becomes a dict with its fields' names as keys; one without names becomes a list.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from itertools import count

from ...passes.torch_private import child_names, pytree
from ...runtime.core.structure import Structure


def structure_of(spec: pytree.TreeSpec) -> Structure:
    """The Structure of `spec`, its results numbered in the order of the leaves."""
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


def _key(key: object) -> str | int | float | bool | None:
    return key if isinstance(key, str | int | float | bool | None) else str(key)


def renumbered(structure: Structure, places: dict[int, int]) -> Structure:
    """The structure with result i renumbered to places[i]; a result that is not in `places` becomes None."""
    if structure.kind == "result":
        return Structure("result", places[structure.index]) if structure.index in places else Structure("none")
    children = tuple(renumbered(child, places) for child in structure.children)
    return Structure(structure.kind, 0, structure.name, structure.keys, children)


def names_in(structure: Structure) -> dict[int, str]:
    """Names, by number, of the results within dicts and named tuples: `logits`, `cache.0`."""
    return {index: ".".join(path) for path, index in _paths(structure, ()) if any(not part.isdigit() for part in path)}


def _paths(structure: Structure, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if structure.kind == "result":
        yield path, structure.index
    for place, child in enumerate(structure.children):
        yield from _paths(child, (*path, str(structure.keys[place]) if structure.keys else str(place)))
