"""Compares what Python knows of two modules: whether both would compute the same, but for the values of their parameters and buffers.

What cannot be looked into is alike where it is the same object. So are the objects that both hold, such as a config. A parameter that one of
them shares with another module has to be the same in both, and one that both share within themselves has to be shared at the same places.
"""

from __future__ import annotations

import functools
import re
import types
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, complex, bytes, type(None), type(Ellipsis))
SMALL = 4096
HOOKS = re.compile(r"_(forward|backward|state_dict|load_state_dict)\w*hooks\w*")


@dataclass(frozen=True)
class Tensors:
    """The parameters and buffers of a module. named: by its name in the module, the first name of the same tensor there, or the tensor's
    identity where it also belongs to a module outside. first: that first name, by identity."""

    named: Mapping[str, str | int]
    first: Mapping[int, str]

    @classmethod
    def of(cls, module: nn.Module, path: str, owners: Mapping[int, Collection[str]]) -> Tensors:
        """owners: for the identity of each tensor of the whole model, all of its names."""
        first: dict[int, str] = {}
        named: dict[str, str | int] = {}
        for name, tensor in [*_named(module)]:
            inside = all(owner.startswith(f"{path}.") for owner in owners[id(tensor)])
            named[name] = first.setdefault(id(tensor), name) if inside else id(tensor)
        return cls(named, first)


def owners_of(module: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter and buffer, by its identity."""
    found: dict[int, list[str]] = {}
    for name, tensor in _named(module):
        found.setdefault(id(tensor), []).append(name)
    return found


def _named(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def alike(one: nn.Module, other: nn.Module, paths: tuple[str, str], tensors: tuple[Tensors, Tensors]) -> bool:
    """Whether all attributes are alike, down to the last. paths: the modules' own, which strings in them may have in them."""
    left, right = tensors
    try:
        return left.named == right.named and _Comparison(paths, (left.first, right.first)).same(one, other)
    except Exception:  # values without values, such as fake tensors, or an `==` of the user's that raises
        return False


class _Comparison:
    def __init__(self, paths: tuple[str, str], tensors: tuple[Mapping[int, str], Mapping[int, str]]) -> None:
        self._tensors = tensors
        self._names = [_name(path) for path in paths]
        self._compared: set[tuple[int, int]] = set()

    def same(self, one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return self._tensor(one, other)
        if one is other:
            return True
        if type(one) is not type(other):
            return False
        if isinstance(one, PLAIN):
            return repr(one) == repr(other)
        if isinstance(one, str):
            left, right = (name.sub("*", text) for name, text in zip(self._names, (one, other), strict=True))
            return left == right
        return self._compound(one, other)

    def _compound(self, one: Any, other: Any) -> bool:
        if isinstance(one, nn.Module):
            return not _has_slots(type(one)) and self._state(one, other)
        if type(one) in (list, tuple):
            return self._all(one, other)
        if type(one) in (dict, OrderedDict):
            return self._all(one, other) and self._all(one.values(), other.values())
        if type(one) in (set, frozenset):
            return bool(one == other)
        if isinstance(one, tuple) and hasattr(one, "_fields"):
            return self._all(one, other)
        if isinstance(one, types.MethodType):
            return one.__func__ is other.__func__ and self.same(one.__self__, other.__self__)
        if isinstance(one, functools.partial):
            return all(self.same(getattr(one, name), getattr(other, name)) for name in ("func", "args", "keywords"))
        if isinstance(one, types.FunctionType | type):
            return False
        return _is_plain(one) and self._state(one, other)

    def _all(self, one: Collection[Any], other: Collection[Any]) -> bool:
        return len(one) == len(other) and all(map(self.same, one, other))

    def _state(self, one: Any, other: Any) -> bool:
        pair = id(one), id(other)
        if pair in self._compared:  # a difference is found where the pair was met first
            return True
        self._compared.add(pair)
        left, right = vars(one), vars(other)
        if left.keys() != right.keys():
            return False
        return all(self._attribute(name, left[name], right[name]) for name in left)

    def _attribute(self, name: str, one: Any, other: Any) -> bool:
        if HOOKS.fullmatch(name) and isinstance(one, dict) and isinstance(other, dict):
            return self._all(one.values(), other.values())  # their keys are numbers of their own
        if name in ("_buffers", "_parameters"):  # operands of the program: their values do not matter
            return one.keys() == other.keys() and all(self._operand(one[key], other[key]) for key in one)
        return self.same(one, other)

    def _tensor(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Held by an object beside the modules: a parameter or buffer of their own by its name, any other by what it is."""
        left, right = (names.get(id(tensor)) for names, tensor in zip(self._tensors, (one, other), strict=True))
        if left is None and right is None:
            return one is other or (type(one) is torch.Tensor and _types(one) == _types(other) and _equal(one, other))
        return left == right and self._operand(one, other)

    def _parameter(self, one: Any, other: Any) -> bool:
        return _types(one) == _types(other) and self._state(one, other)

    def _operand(self, one: Any, other: Any) -> bool:
        if isinstance(one, nn.Parameter) and type(one) is type(other):
            return self._parameter(one, other)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return _types(one) == _types(other)
        return self.same(one, other)


def _is_plain(value: Any) -> bool:
    """Whether all that the object holds is in its `__dict__`: it pickles as any object does, and has no slots."""
    cls = type(value)
    own: object = cls.__reduce_ex__
    reduce: object = cls.__reduce__
    by_default = own is object.__reduce_ex__ and reduce is object.__reduce__
    return hasattr(value, "__dict__") and not _has_slots(cls) and by_default


def _has_slots(cls: type) -> bool:
    return any(vars(base).get("__slots__") for base in cls.__mro__)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two small tensors have the same bits, such as scales of 1; larger ones are not read."""
    if one.numel() == 0:
        return True
    if one.numel() > SMALL or one.device.type != "cpu" or other.device.type != "cpu" or type(one) is not torch.Tensor:
        return False
    left, right = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return bool(torch.equal(left, right))


def _types(tensor: torch.Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _name(path: str) -> re.Pattern[str]:
    """Matches the last two parts of a path, "layers.3": what stands before them is often another name for the same."""
    return re.compile(rf"(?<![\w-]){re.escape('.'.join(path.split('.')[-2:]))}(?![\w-])")
