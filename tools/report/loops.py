"""Trip counts of loops in optimized HLO.

Taken from the compiler (`known_trip_count`), else from a counted loop: its condition compares a counter with a bound, its body
adds a constant to the counter, and both start as constants. Other trip counts depend on data.
"""

from __future__ import annotations

from math import ceil

from .hlo_text import Computation, HloText, Instruction

SAME = {"copy", "bitcast", "convert"}


def trip_count(one: Instruction, around: Computation, text: HloText) -> int | None:
    """Trip count of the `while` instruction `one` of computation `around`; None where it depends on data."""
    if known := one.attribute("trips"):
        return int(known)
    condition = text.computations.get(one.attribute("condition"), {})
    body = text.computations.get(one.attribute("body"), {})
    compare = next((each for each in condition.values() if each.root and each.opcode == "compare"), None)
    start = around.get(one.operands[0]) if one.operands else None
    if compare is None or start is None or start.opcode != "tuple":
        return None
    counter = _element(condition, compare.operands[0])
    if counter is None:
        return None
    bound_at = _element(condition, compare.operands[1])
    bound = _constant(condition, compare.operands[1])
    if bound_at is not None and _unchanged(body, bound_at):
        bound = _constant(around, start.operands[bound_at])
    first, step = _constant(around, start.operands[counter]), _step(body, counter)
    if first is None or bound is None or not step:
        return None
    inclusive = {"LT": 0, "GT": 0, "LE": 1, "GE": 1}.get(compare.attribute("direction"))
    if inclusive is None or (step > 0) != (compare.attribute("direction") in ("LT", "LE")):
        return None
    return max(ceil((abs(bound - first) + inclusive) / abs(step)) if (bound - first) * step >= 0 else 0, 0)


def _element(computation: Computation, name: str) -> int | None:
    """The index of the value among the elements of the loop's state."""
    one = _source(computation, name)
    return int(one.attribute("index")) if one is not None and one.opcode == "get-tuple-element" else None


def _constant(computation: Computation, name: str) -> int | None:
    one = _source(computation, name)
    value = one.rest.partition("|")[0] if one is not None and one.opcode == "constant" else ""
    return int(value) if value.lstrip("-").isdecimal() else None


def _source(computation: Computation, name: str) -> Instruction | None:
    """The instruction that defines a value, through copies."""
    one = computation.get(name)
    while one is not None and one.opcode in SAME:
        one = computation.get(one.operands[0])
    return one


def _next(body: Computation, index: int) -> str:
    """The name of the value that the body gives for element `index` of its state."""
    root = next((each for each in body.values() if each.root), None)
    return root.operands[index] if root is not None and root.opcode == "tuple" else ""


def _unchanged(body: Computation, index: int) -> bool:
    return _element(body, _next(body, index)) == index


def _step(body: Computation, index: int) -> int | None:
    """The constant that the body adds to the counter."""
    one = _source(body, _next(body, index))
    if one is None or one.opcode != "add" or _element(body, one.operands[0]) != index:
        return None
    return _constant(body, one.operands[1])
