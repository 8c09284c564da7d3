"""The signature of a compiled module: names, kinds, shapes, dtypes, shardings, and which result updates which argument.

Comes in: what the emitter knows of `main`, or the JSON of a manifest. Goes out: a frozen `Signature`.
Guaranteed: argument names are unique, each alias is mutual and between equal shapes, dtypes and shardings, and each sharding fits the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from .dtypes import dtype_of
from .errors import SignatureError
from .mesh import ONE_DEVICE, Mesh
from .sharding import REPLICATED, Sharding
from .structure import Structure

Kind = Literal["weight", "buffer", "constant", "input", "state"]
KINDS: tuple[str, ...] = get_args(Kind)
BOUND: tuple[str, ...] = ("weight", "buffer", "constant")
"""Kinds that are placed once by `Executable.bind`; the others come with each call."""
RANDOM_KEY = "rng_key"
"""The input, int32 [2], of a module that draws random numbers: they are a function of it (docs/semantics.md)."""


@dataclass(frozen=True)
class Argument:
    """One argument of `main`. shape: of the whole tensor, over all devices.

    alias: the index of the result that is this argument updated (it is then donated). sharding: how it lies on the signature's mesh.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    alias: int | None = None
    sharding: Sharding = REPLICATED

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, over all devices."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Result:
    """One result of `main`. alias: the index of the argument of which it is the new value. sharding: as of an argument."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    alias: int | None = None
    sharding: Sharding = REPLICATED

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The arguments and results of `main`, in order, and the mesh that they lie on.

    Raises SignatureError where they contradict each other.

    structure: how the results that are no updates nest in what the module returned; None where it is not known.
    """

    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    mesh: Mesh = ONE_DEVICE
    structure: Structure | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(self.arguments))
        object.__setattr__(self, "results", tuple(self.results))
        seen: set[str] = set()
        for index, argument in enumerate(self.arguments):
            if argument.name in seen:
                raise SignatureError(
                    f"two arguments are named {argument.name!r}", next_step="give each a name of its own"
                )
            seen.add(argument.name)
            if argument.kind not in KINDS:
                raise SignatureError(f"{argument.name} is of kind {argument.kind!r}; kinds are {', '.join(KINDS)}")
            _check_alias(f"argument {index} ({argument})", index, argument, self.results)
        if self.structure is not None and any(index >= len(self.results) for index in self.structure.indices):
            raise SignatureError(f"the structure of the results names one of more than {len(self.results)}")
        for index, result in enumerate(self.results):
            _check_alias(f"result {index} ({result})", index, result, self.arguments)
        everything: list[Argument | Result] = [*self.arguments, *self.results]
        for one in everything:
            try:
                one.sharding.shard(one.shape, self.mesh)
            except SignatureError as problem:
                raise SignatureError(f"{one}: {problem.message}", next_step=problem.next_step) from problem

    @cached_property
    def weights(self) -> tuple[Argument, ...]:
        """The arguments that `bind` places once: weights, buffers and constants."""
        return tuple(argument for argument in self.arguments if argument.kind in BOUND)

    @cached_property
    def inputs(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.arguments if argument.kind == "input")

    @cached_property
    def states(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.arguments if argument.kind == "state")

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Argument name -> index."""
        return {argument.name: index for index, argument in enumerate(self.arguments)}

    def argument(self, name: str) -> Argument:
        """The argument of that name; SignatureError with the near names if there is none."""
        try:
            return self.arguments[self.positions[name]]
        except KeyError:
            raise _unknown("argument", name, list(self.positions)) from None

    def result(self, name: str) -> Result:
        """The first result of that name; SignatureError with the near names if there is none."""
        for result in self.results:
            if result.name == name:
                return result
        raise _unknown("result", name, [result.name for result in self.results])

    def to_json(self) -> dict[str, object]:
        """Lists, strings, numbers and None only; `from_json` gives an equal signature."""
        nesting = {} if self.structure is None else {"structure": self.structure.to_json()}
        return {
            "mesh": self.mesh.to_json(),
            "arguments": [_to_json(argument) for argument in self.arguments],
            "results": [_to_json(result) for result in self.results],
            **nesting,
        }

    @staticmethod
    def from_json(data: object) -> Signature:
        """The inverse of `to_json`. Raises SignatureError that names the field that is wrong."""
        nested = isinstance(data, dict) and "structure" in data
        checks = {
            "mesh": _is_list,
            "arguments": _is_list,
            "results": _is_list,
            **({"structure": _is_any} if nested else {}),
        }
        fields = _fields("signature", data, checks)
        arguments = tuple(
            Argument(**_entry(f"arguments[{index}]", one, {"name": _is_str, "kind": _is_kind}))
            for index, one in enumerate(fields["arguments"])
        )
        results = tuple(
            Result(**_entry(f"results[{index}]", one, {"name": _is_str})) for index, one in enumerate(fields["results"])
        )
        structure = Structure.from_json(fields["structure"]) if nested else None
        return Signature(arguments, results, Mesh.from_json(fields["mesh"]), structure)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "name", "kind", "dtype", "shape", "updated as / updates", "sharding")]
        for index, argument in enumerate(self.arguments):
            target = "" if argument.alias is None else f"-> result {argument.alias}"
            rows.append(
                (f"arg {index}", argument.name, argument.kind, *_columns(argument), target, str(argument.sharding))
            )
        for index, result in enumerate(self.results):
            source = "" if result.alias is None else f"<- arg {result.alias}"
            rows.append((f"result {index}", result.name, "", *_columns(result), source, str(result.sharding)))
        if not self.mesh.axes:  # one device holds everything
            rows = [row[:-1] for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def _columns(one: Argument | Result) -> tuple[str, str]:
    return one.dtype, f"[{', '.join(map(str, one.shape))}]"


def _to_json(one: Argument | Result) -> dict[str, object]:
    kind = {"kind": one.kind} if isinstance(one, Argument) else {}
    return {
        "name": one.name,
        **kind,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "alias": one.alias,
        "sharding": one.sharding.to_json(),
    }


def _check_alias(what: str, index: int, one: Argument | Result, others: Sequence[Argument | Result]) -> None:
    """An alias points to an entry that points back and has the same shape and dtype."""
    if one.alias is None:
        return
    if not 0 <= one.alias < len(others):
        raise SignatureError(f"{what} has alias {one.alias}, and there are {len(others)} of these")
    other = others[one.alias]
    if other.alias != index:
        raise SignatureError(f"{what} has alias {one.alias} ({other}), whose alias is {other.alias}, not {index}")
    if (other.shape, other.dtype) != (one.shape, one.dtype):
        raise SignatureError(f"{what} and its alias {one.alias} ({other}) differ in shape or dtype")
    if other.sharding != one.sharding:
        raise SignatureError(f"{what} is {one.sharding} and its alias {one.alias} ({other}) {other.sharding}")


def _unknown(what: str, name: str, known: list[str]) -> SignatureError:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 5, 0.4) or known[:10]
    next_step = f"near or first of the {len(known)} there are: {', '.join(near)}"
    return SignatureError(f"there is no {what} {name!r}", next_step=next_step)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_any(value: object) -> bool:
    return True


def _is_str(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_kind(value: object) -> bool:
    return value in KINDS


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(_is_index(size) for size in value)


def _is_alias(value: object) -> bool:
    return value is None or _is_index(value)


def _fields(where: str, data: object, checks: Mapping[str, Callable[[object], bool]]) -> dict[str, Any]:
    """`data` as a dict that has exactly these keys, each value passing its check."""
    if not isinstance(data, dict):
        raise SignatureError(f"{where} is {type(data).__name__}, not an object")
    if data.keys() != checks.keys():
        missing, extra = sorted(checks.keys() - data.keys()), sorted(data.keys() - checks.keys())
        raise SignatureError(f"{where} lacks {missing} and has unknown {extra}")
    for key, check in checks.items():
        if not check(data[key]):
            raise SignatureError(f"{where}.{key} is {data[key]!r}")
    return data


def _entry(where: str, data: object, checks: Mapping[str, Callable[[object], bool]]) -> dict[str, Any]:
    fields = _fields(
        where, data, {**checks, "shape": _is_shape, "dtype": _is_str, "alias": _is_alias, "sharding": _is_list}
    )
    dtype_of(fields["dtype"])
    return {**fields, "shape": tuple(fields["shape"]), "sharding": Sharding.from_json(fields["sharding"])}
