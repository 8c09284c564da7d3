"""Template: a module for stand-in sizes, which is changed into the one for any others, type by type and attribute by attribute.

Comes in: a module, and the stand-ins' numbers in it. Goes out: the same module, with other numbers in their places. Guaranteed: ops, names and
locations stay; a module in which a constant has as many elements as a stand-in says is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from ...passes.hlo.composite import operations
from ...passes.mlir import ir
from .extents import Unlike


class Template:
    """module: changed in place by `at`. numbers: the stand-ins' in it."""

    def __init__(self, module: ir.Module, numbers: Collection[int]) -> None:
        self.module = module
        self._values: dict[str, list[ir.Value[Any]]] = {}
        """By a type's text: the values that have it."""
        self._attributes: dict[str, list[tuple[ir.Operation, str]]] = {}
        """By an attribute's text: the operations that have it, and its name there."""
        self._number = _number(frozenset(numbers))
        self._sized: dict[str, bool] = {}
        with module.context:
            for operation in operations(module.operation):
                self._take(operation)

    def _take(self, operation: ir.Operation) -> None:
        values = [
            *operation.results,
            *(one for region in operation.regions for block in region for one in block.arguments),
        ]
        for value in values:
            text = str(value.type)
            if self._is_sized(text):
                self._values.setdefault(text, []).append(value)
        for name in operation.attributes:
            text = str(operation.attributes[name])
            if self._is_sized(text):
                if text.startswith(("dense<[", 'dense<"')):
                    raise Unlike(f"a constant has numbers that depend on sizes: {text[:80]}")
                self._attributes.setdefault(text, []).append((operation, name))

    def _is_sized(self, text: str) -> bool:
        known = self._sized.get(text)
        if known is None:
            known = self._sized[text] = self._number.search(text) is not None
        return known

    def at(self, numbers: Mapping[int, int]) -> ir.Module:
        """The module with these numbers in the places of the stand-ins'; valid until the next call."""
        with self.module.context:
            for text, values in self._values.items():
                type_ = ir.Type.parse(replaced(text, numbers))
                for value in values:
                    value.set_type(type_)
            for text, places in self._attributes.items():
                attribute = ir.Attribute.parse(replaced(text, numbers))
                for operation, name in places:
                    operation.attributes[name] = attribute
        return self.module


def replaced(text: str, numbers: Mapping[int, int]) -> str:
    """`text` with other numbers in the places of these."""
    return _number(frozenset(numbers)).sub(lambda found: str(numbers[int(found[0])]), text)


@cache
def _number(numbers: frozenset[int]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\d)(?:{'|'.join(map(str, sorted(numbers)))})(?!\d)" if numbers else r"(?!)")
