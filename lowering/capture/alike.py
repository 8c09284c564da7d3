"""Compares what Python knows of two modules: whether both would compute the same, but for the values of their parameters and buffers.

What cannot be looked into is alike where it is the same object. So are the objects that both hold, such as a config.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, complex, bytes, type(None), type(Ellipsis))
SMALL = 4096
HOOKS = re.compile(r"_(forward|backward|state_dict|load_state_dict)\w*hooks\w*")


def alike(one: nn.Module, other: nn.Module, paths: tuple[str, str]) -> bool:
    """Whether all attributes are alike, down to the last. paths: the modules' own, which strings in them may have in them."""
    try:
        return _Comparison(paths).same(one, other)
    except Exception:  # values without values, such as fake tensors, or an `==` of the user's that raises
        return False


class _Comparison:
    def __init__(self, paths: tuple[str, str]) -> None:
        self._names = [_name(path) for path in paths]
        self._compared: set[tuple[int, int]] = set()

    def same(self, one: Any, other: Any) -> bool:
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
        if isinstance(one, nn.Parameter):
            return _types(one) == _types(other) and self._state(one, other)
        if isinstance(one, nn.Module):
            return self._state(one, other)
        if isinstance(one, list | tuple):
            return self._all(one, other)
        if isinstance(one, dict):
            return self._all(one, other) and self._all(one.values(), other.values())
        if isinstance(one, set | frozenset):
            return bool(one == other)
        if isinstance(one, types.MethodType):
            return one.__func__ is other.__func__ and self.same(one.__self__, other.__self__)
        if isinstance(one, functools.partial):
            return all(self.same(getattr(one, name), getattr(other, name)) for name in ("func", "args", "keywords"))
        if isinstance(one, torch.Tensor):
            return _types(one) == _types(other) and _equal(one, other)
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
        if name == "_buffers":  # operands of the program: their values do not matter
            return one.keys() == other.keys() and all(self._buffer(one[key], other[key]) for key in one)
        return self.same(one, other)

    def _buffer(self, one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return _types(one) == _types(other)
        return self.same(one, other)


def _is_plain(value: Any) -> bool:
    """Whether all that the object holds is in its `__dict__`: it pickles as any object does, and has no slots."""
    cls = type(value)
    slots = any(vars(base).get("__slots__") for base in cls.__mro__)
    own: object = cls.__reduce_ex__
    return hasattr(value, "__dict__") and not slots and own is object.__reduce_ex__


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
