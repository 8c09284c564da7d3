"""How the results of a call nest: tuples, lists, dicts and named tuples, with JSON for the manifest.

Comes in: what capture knows of a module's return value, or the JSON of a signature. Goes out: a `Structure`, whose `build` puts
results in their places. Guaranteed: `from_json(to_json())` is equal; no class of the module is needed to build one.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

from .errors import SignatureError

Kind = Literal["result", "none", "tuple", "list", "dict", "namedtuple"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Structure:
    """A result, None, or a container of such.

    index: of the result, where kind is "result". keys: a dict's keys, or a named tuple's fields. name: a named tuple's class.
    """

    kind: Kind
    index: int = 0
    name: str = ""
    keys: tuple[str | int | float | bool | None, ...] = ()
    children: tuple[Structure, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        """The results in it, in order."""
        if self.kind == "result":
            return (self.index,)
        return tuple(index for child in self.children for index in child.indices)

    def numbered(self, numbers: Mapping[int, int]) -> Structure:
        """The same with `numbers[index]` in the place of each result's index."""
        if self.kind == "result":
            return replace(self, index=numbers[self.index])
        return replace(self, children=tuple(child.numbered(numbers) for child in self.children))

    def build(self, results: Sequence[Any]) -> Any:
        """The containers with `results[index]` in each place."""
        if self.kind == "result":
            return results[self.index]
        if self.kind == "none":
            return None
        children = [child.build(results) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, children, strict=True))
        if self.kind == "namedtuple":
            return _class(self.name, tuple(map(str, self.keys)))(*children)
        return tuple(children) if self.kind == "tuple" else children

    def to_json(self) -> Any:
        """A number for a result, None for None, else an object; lists, strings, numbers, booleans and None only."""
        if self.kind == "result":
            return self.index
        if self.kind == "none":
            return None
        return {
            "kind": self.kind,
            "name": self.name,
            "keys": list(self.keys),
            "children": [child.to_json() for child in self.children],
        }

    @staticmethod
    def from_json(data: Any) -> Structure:
        """The inverse of `to_json`. Raises SignatureError."""
        if data is None:
            return Structure("none")
        if type(data) is int and data >= 0:
            return Structure("result", data)
        if (
            not isinstance(data, dict)
            or data.keys() != {"kind", "name", "keys", "children"}
            or data["kind"] not in KINDS
        ):
            raise SignatureError(f"the structure of the results is damaged: {data!r}"[:200])
        children = tuple(Structure.from_json(child) for child in data["children"])
        keys = tuple(data["keys"])
        if data["kind"] in ("dict", "namedtuple") and len(keys) != len(children):
            raise SignatureError(f"the structure of the results has {len(keys)} names for {len(children)} parts")
        return Structure(data["kind"], 0, str(data["name"]), keys, children)


@cache
def _class(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name or "Results", fields, rename=True)
