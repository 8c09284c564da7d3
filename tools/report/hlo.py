"""Costs of a compiled module: its optimized HLO, instruction by instruction, with the memory traffic of each.

Comes in: the text of optimized HLO, as `pjrt.Compiled.text` gives it. Goes out: a `Cost` per instruction that does
work: flops of matmuls, bytes moved to and from HBM, the compiler's cycle estimate, and the module path it came from.
Guaranteed: what lies in on-chip memory (`S(1)` in a layout) costs no bytes; a prefetch is counted once, where it starts; the
body of a loop is multiplied by its trip count; one that depends on data counts as 1, and the costs name the loop.

A Pallas kernel is opaque: kind "kernel", no flops and no bytes. Its composite gives lower bounds (ideal.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from .hlo_text import ATTRIBUTE, NAME, Computation, HloText, Instruction
from .loops import trip_count

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done", "async-done", "call-done",
    "async-update", "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "iota", "domain",
}  # fmt: skip
PRODUCTS = {"convolution", "dot"}
STARTS = {"copy-start", "slice-start", "async-start", "call-start"}
KERNEL = "tpu_custom_call"
PASSES = {"bitcast", "bitcast-convert", "reshape", "copy"}


@dataclass(frozen=True)
class Cost:
    """What one op costs. bytes: to and from HBM. cycles: the compiler's estimate, 0 where it has none.

    operands: the types of a composite's operands, as legalization's decisions name them. loop: the name of the loop around
    it whose trip count depends on data; the cost is that of one iteration.
    """

    path: str
    kind: str
    flops: float = 0.0
    bytes: float = 0.0
    cycles: int = 0
    dtype: str = "bfloat16"
    operands: str = ""
    loop: str = ""

    def times(self, count: int) -> Cost:
        """The cost multiplied by `count`."""
        return replace(self, flops=self.flops * count, bytes=self.bytes * count, cycles=self.cycles * count)


@dataclass(frozen=True)
class Optimized:
    """The optimized HLO of one module."""

    text: HloText

    @classmethod
    def parse(cls, text: str) -> Optimized:
        """Parses the text of optimized HLO."""
        return cls(HloText.parse(text))

    @cached_property
    def costs(self) -> list[Cost]:
        """A cost for each instruction that runs, in order."""
        return list(self._costs(self.text.entry, ""))

    def _costs(self, name: str, path: str) -> Iterator[Cost]:
        computation = self.text.computations.get(name, {})
        users = _users(computation)
        for one in computation.values():
            here = one.path or path
            if one.opcode in STARTS or not here:
                here = _user_path(computation, users, one.name) or here
            if one.opcode in FREE or (one.opcode in STARTS and _for_the_next_call(users, one.name)):
                continue
            if one.opcode == "while":
                yield from self._loop(one, computation, here)
            elif one.opcode == "conditional":
                yield from self._longest(one, here)
            elif one.opcode == "call":
                yield from self._costs(one.attribute("calls"), here)
            elif cost := self._cost(computation, one, here):
                yield cost

    def _loop(self, one: Instruction, computation: Computation, path: str) -> Iterator[Cost]:
        """The body's costs times the trip count; of one iteration, and marked, where that depends on data."""
        rounds = trip_count(one, computation, self.text)
        for cost in self._costs(one.attribute("body"), path):
            yield replace(cost, loop=cost.loop or one.name) if rounds is None else cost.times(rounds)

    def _longest(self, one: Instruction, path: str) -> Iterator[Cost]:
        """The costs of the branch that moves the most bytes."""
        found = ATTRIBUTE["branches"].search(one.rest)
        branches = NAME.findall(found.group()) if found else []
        ways = [list(self._costs(branch, path)) for branch in branches]
        yield from max(ways, key=lambda way: sum(cost.bytes for cost in way), default=[])

    def _cost(self, computation: Computation, one: Instruction, path: str) -> Cost | None:
        cycles = int(one.attribute("cycles") or 0)
        if one.opcode == "custom-call" and one.attribute("target") == KERNEL:
            return Cost(path, "kernel", cycles=cycles)
        if one.opcode in STARTS:
            return Cost(path, "prefetch", bytes=_moved(one, computation), cycles=cycles)
        if one.opcode.endswith(("-start", "-done", "-update")):
            return None
        body = self.text.computations.get(one.attribute("calls"), {}) if one.opcode == "fusion" else {}
        products = list(self._products(body)) if body else [(one, computation)] if one.opcode in PRODUCTS else []
        flops = sum(_flops(product, around) for product, around in products)
        dtype = _operand_dtype(*products[0]) if products else "bfloat16"
        return Cost(path, _kind(one, bool(products), body), flops, self._bytes(computation, one, body), cycles, dtype)

    def _products(self, body: Computation) -> Iterator[tuple[Instruction, Computation]]:
        """The matmuls and convolutions of a fusion and of fusions in it, each with its computation."""
        for one in body.values():
            if one.opcode in PRODUCTS:
                yield one, body
            elif one.opcode == "fusion":
                yield from self._products(self.text.computations.get(one.attribute("calls"), {}))

    def _bytes(self, computation: Computation, one: Instruction, body: Computation) -> int:
        """HBM traffic: operands and results, or the parts of them that a fusion touches."""
        results = sum(result.bytes for result in one.results if result.hbm)
        if not body:
            if one.opcode in ("gather", "dynamic-slice"):
                return 2 * results
            return results + sum(_hbm_bytes(computation, name) for name in one.operands)
        parameters = [each for each in body.values() if each.opcode == "parameter"]
        order = {int(each.rest.partition("|")[0] or index): each for index, each in enumerate(parameters)}
        total = 0
        for index, name in enumerate(one.operands):
            whole = _hbm_bytes(computation, name)
            if whole and (inner := order.get(index)):
                read, in_place = _touched(body, inner, whole)
                total += read
                results -= in_place
        return total + max(results, 0)


def _users(computation: Computation) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in computation.values():
        for name in one.operands:
            found.setdefault(name, []).append(one.name)
    return found


def _for_the_next_call(users: dict[str, list[str]], name: str) -> bool:
    """Whether a copy completes without a user: it prefetches for the next call, which skips its own copy; that one is counted."""
    ends = users.get(name, [])
    return bool(ends) and not any(users.get(end) for end in ends)


def _user_path(computation: Computation, users: dict[str, list[str]], name: str) -> str:
    """The module path of the first user of a value that has no path itself, such as a prefetched weight."""
    seen, todo = {name}, [name]
    while todo:
        for user in users.get(todo.pop(0), ()):
            if user not in seen:
                if path := computation[user].path:
                    return path
                seen.add(user)
                todo.append(user)
    return ""


def _hbm_bytes(computation: Computation, name: str) -> int:
    one = computation.get(name)
    return sum(result.bytes for result in one.results if result.hbm) if one else 0


def _moved(one: Instruction, computation: Computation) -> int:
    """Bytes of HBM traffic of an asynchronous copy: a side that lies on the chip costs nothing."""
    if one.opcode in ("async-start", "call-start"):
        return sum(result.bytes for result in one.results if result.hbm)
    large = [result for result in one.results if result.dtype not in ("u32", "s32") or len(result.shape) > 0]
    size = min((result.bytes for result in large), default=0)
    source = computation.get(one.operands[0]) if one.operands else None
    sides = [all(part.hbm for part in source.results) if source else True]
    moved = [result for result in large if result.bytes == size]
    sides.append(all(result.hbm for result in moved) if one.opcode == "slice-start" else large[0].hbm)
    if one.opcode == "copy-start":  # (destination, source, context)
        sides = [result.hbm for result in large[:2]]
    return size * sum(sides)


def _touched(body: Computation, parameter: Instruction, whole: int) -> tuple[int, int]:
    """(bytes of a parameter that a fusion reads, bytes of the result that an in-place update leaves unchanged)."""
    aliases, read, written_over = {parameter.name}, 0, 0
    for one in body.values():
        if not aliases & set(one.operands):
            continue
        if one.opcode in PASSES and prod(one.results[0].shape) == prod(parameter.results[0].shape):
            aliases.add(one.name)
        elif one.opcode in ("gather", "dynamic-slice", "slice") and one.operands[0] in aliases:
            read += sum(result.bytes for result in one.results)
        elif one.opcode in ("scatter", "dynamic-update-slice") and one.operands[0] in aliases:
            update = body.get(one.operands[2 if one.opcode == "scatter" else 1])
            size = sum(result.bytes for result in update.results) if update else whole
            read, written_over = read + size, written_over + max(whole - size, 0)
        else:
            return whole, 0
    return min(read, whole), written_over


def _operand_dtype(one: Instruction, computation: Computation) -> str:
    names = {"bf16": "bfloat16", "f32": "float32", "s8": "int8", "u8": "int8", "f8e4m3fn": "float8_e4m3fn"}
    weight = computation.get(one.operands[1])
    return names.get(weight.results[0].dtype, "bfloat16") if weight else "bfloat16"


def _flops(one: Instruction, computation: Computation) -> float:
    """Flops as XLA counts them: two per multiply-add."""
    left, right = (computation.get(name) for name in one.operands[:2])
    if left is None or right is None:
        return 0.0
    result = prod(one.results[0].shape)
    if one.opcode == "dot":
        sizes = left.results[0].shape
        return 2.0 * result * prod(sizes[int(index)] for index in one.attribute("contracting").split(",") if index)
    labels = ATTRIBUTE["labels"].search(one.rest)
    if labels is None:
        return 0.0
    kernel = dict(zip(labels[2], right.results[0].shape, strict=True))
    source = dict(zip(labels[1], left.results[0].shape, strict=True))
    out = dict(zip(labels[3], one.results[0].shape, strict=True))
    spatial = [label for label in labels[3] if label not in "bf"]
    features = prod(size for label, size in out.items() if label in "bf")
    window = dict(part.split("=") for part in one.attribute("window").split() if "=" in part)
    pairs = [_pairs(place, source[label], out[label], window) for place, label in enumerate(sorted(spatial))]
    return 2.0 * features * kernel["i"] * prod(pairs)


def _pairs(place: int, source: int, out: int, window: dict[str, str]) -> int:
    """The number of (output position, window tap) pairs along one dimension that hit an element of the input."""

    def of(key: str, default: int) -> int:
        return int(window[key].split("x")[place]) if key in window else default

    taps, stride, spread, dilated = of("size", 1), of("stride", 1), of("rhs_dilate", 1), of("lhs_dilate", 1)
    low = int(window["pad"].split("x")[place].split("_")[0]) if "pad" in window else 0
    reach = (source - 1) * dilated
    positions = (at * stride - low + tap * spread for at in range(out) for tap in range(taps))
    return sum(0 <= position <= reach and position % dilated == 0 for position in positions)


def _kind(one: Instruction, product: bool, body: Computation) -> str:
    if product:
        return "product"
    if one.opcode == "custom-call":
        return one.attribute("target")
    if one.opcode != "fusion":
        return one.opcode
    for opcode in ("scatter", "gather", "sort", "dynamic-update-slice", "reduce"):
        if any(each.opcode == opcode for each in body.values()):
            return f"{opcode} fusion"
    return "elementwise fusion"
