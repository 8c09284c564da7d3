"""Says which condition did not hold where an assertion of vLLM's or transformers' has no text, with the numbers in it."""

from __future__ import annotations

import ast
import linecache
import textwrap
from types import TracebackType


def condition_of(problem: BaseException) -> str:
    """What did not hold, with its numbers, of an assertion without a text: "heads % groups == 0 (heads = 8, groups = 3)"; else ""."""
    last = problem.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if not isinstance(problem, AssertionError) or last is None:
        return ""
    condition = _condition(last)
    if condition is None:
        return ""
    frame = last.tb_frame
    numbers = {}
    for part in ast.walk(condition):
        if isinstance(part, (ast.Name, ast.Attribute)):
            name = ast.unparse(part)
            value = _value(name, frame.f_globals, frame.f_locals)
            if isinstance(value, (int, float, str)):
                numbers[name] = value
    told = ", ".join(f"{name} = {value!r}" for name, value in numbers.items())
    place = f"{frame.f_code.co_filename}:{last.tb_lineno}"
    return f"{ast.unparse(condition)} does not hold{f', with {told}' if told else ''} ({place})"


def _condition(place: TracebackType) -> ast.expr | None:
    """The condition of the assertion at this place, whose lines may be several."""
    name = place.tb_frame.f_code.co_filename
    for count in range(1, 12):
        lines = [linecache.getline(name, place.tb_lineno + index) for index in range(count)]
        try:
            (statement,) = ast.parse(textwrap.dedent("".join(lines))).body
        except (SyntaxError, ValueError):
            continue
        return statement.test if isinstance(statement, ast.Assert) else None
    return None


def _value(name: str, *namespaces: dict[str, object]) -> object:
    """The value of a name, or of an attribute of one; None where there is none."""
    first, *rest = name.split(".")
    value: object = next((space[first] for space in reversed(namespaces) if first in space), None)
    for part in rest:
        value = getattr(value, part, None)
    return value
