"""Reads the text of optimized HLO, as `pjrt.Compiled.text` gives it: computations, their instructions, where each value lies.

Tried with the text of jaxlib 0.10.2's CPU compiler and libtpu 0.0.42's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

BITS = {"pred": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "token": 0, "opaque": 0}

_TENSOR = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ATTRIBUTE = {
    "path": re.compile(r'op_name="([^"]*)"'),
    "cycles": re.compile(r'"estimated_cycles":"(\d+)"'),
    "calls": re.compile(r"(?:calls|to_apply)=%([\w.\-]+)"),
    "body": re.compile(r"body=%([\w.\-]+)"),
    "condition": re.compile(r"condition=%([\w.\-]+)"),
    "index": re.compile(r"index=(\d+)"),
    "direction": re.compile(r"direction=(\w+)"),
    "trips": re.compile(r'"known_trip_count":\{"n":"(\d+)"'),
    "branches": re.compile(r"branch_computations=\{([^}]*)\}|true_computation=(%[\w.\-]+), false_computation=(%[\w.\-]+)"),
    "target": re.compile(r'custom_call_target="([^"]*)"'),
    "labels": re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)"),
    "window": re.compile(r"window=\{([^}]*)\}"),
    "contracting": re.compile(r"lhs_contracting_dims=\{([\d,]*)\}"),
    "groups": re.compile(r"feature_group_count=(\d+)"),
    "slices": re.compile(r"slice_sizes=\{([\d,]*)\}"),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One array of an instruction's result: `hbm` where it lies in the device's main memory."""

    dtype: str
    shape: tuple[int, ...]
    hbm: bool

    @property
    def bytes(self) -> int:
        """Its size, without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype) if self.dtype in BITS else int(digits.group()) if digits else 0
        return prod(self.shape) * (bits or 0) // 8


@dataclass(frozen=True)
class Instruction:
    """One instruction. operands: names. rest: what stands behind the operands; of a parameter and a constant its value, and that."""

    name: str
    results: tuple[Tensor, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """The value of one of ATTRIBUTE; "" where the instruction has none."""
        found = ATTRIBUTE[name].search(self.rest)
        return next((group for group in found.groups() if group), "") if found else ""

    @property
    def path(self) -> str:
        """The module path. XLA inlines a layer's function and puts a slash between the call's name and an op's."""
        return self.attribute("path").replace("/", ".")


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


@dataclass(frozen=True)
class HloText:
    """The computations of one module by name; `entry` names the one that runs first."""

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> HloText:
        computations: dict[str, Computation] = {}
        entry = ""
        current: Computation = {}
        for line in text.splitlines():
            if line.startswith(("  ", "\t")):
                if instruction := _instruction(line):
                    current[instruction.name] = instruction
            elif header := _HEADER.match(line):
                current = computations[header[2]] = {}
                if header[1]:
                    entry = header[2]
        return cls(computations, entry)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    if not equals:
        return None
    cut = _balanced(right, 0) if right.startswith("(") else right.find(" ")
    type_, rest = right[:cut], right[cut:].lstrip()
    opening = rest.find("(")
    closing = _balanced(rest, opening)
    opcode, inside, after = rest[:opening], rest[opening + 1 : closing - 1], rest[closing:]
    results = tuple(
        Tensor(dtype, tuple(int(size) for size in shape.split(",") if size), "S(" not in layout)
        for dtype, shape, layout in _TENSOR.findall(type_)
    )
    root = left.startswith("ROOT ")
    name = left.removeprefix("ROOT ").lstrip("%")
    literal = opcode in ("parameter", "constant")
    operands = () if literal else tuple(NAME.findall(inside))
    return Instruction(name, results, opcode, operands, f"{inside}|{after}" if literal else after, root)


def _balanced(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` has closed."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index + 1
    return len(text)
