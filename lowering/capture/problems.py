"""Explains failures of torch.export: an error that says what is wrong, where, and what to do next.

Comes in: the exception, the module, and the conditions on sizes with their lines. Goes out: a CaptureError.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence

import sympy
import torch

from ...passes.torch_private import (
    UNREGISTERED_CACHE,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
    is_subclass,
    pytree,
)
from ..errors import CaptureError
from ..left_out import SHAPE, reasons
from .tracing import first_lines, user_frame

Asked = tuple[sympy.Basic, str | None]
"""A condition on sizes that the trace relied on, and the user's file and line that caused it."""


def explained(problem: Exception, module: torch.nn.Module, asked: Sequence[Asked]) -> CaptureError:
    """The error to raise for torch.export's. asked: conditions on sizes that the trace relied on, in order."""
    name = type(module).__name__
    if "Constraints violated" in str(problem):
        return _broken_sizes(problem, name, asked)
    scripted = [path for path, child in module.named_modules() if isinstance(child, torch.jit.ScriptModule)]
    if scripted:
        return CaptureError(
            f"{name}.{scripted[0]} is compiled by torch.jit.script, and its Python is gone: torch.export cannot trace it",
            where=user_frame(problem),
            next_step="build the model with the module that was scripted, and load the weights by load_state_dict",
        )
    if isinstance(problem, PendingUnbackedSymbolNotFound):
        return CaptureError(
            f"{name} picks elements by a boolean mask beside another index: how many depends on data, and a compiled module's shapes are fixed",
            where=user_frame(problem),
            next_step="index by integers, or keep all elements and choose by torch.where",
        )
    return CaptureError(
        f"torch.export could not capture {name}: {first_lines(problem)}",
        where=user_frame(problem),
        next_step=_advice(problem),
    )


def _broken_sizes(problem: Exception, name: str, asked: Sequence[Asked]) -> CaptureError:
    """The error for dynamic_shapes that the model does not allow: each violation, its line, and torch's suggestion."""
    lines = [line.strip() for line in str(problem).splitlines()]
    violations = [_without_advice(line.removeprefix("- ")) for line in lines if line.startswith("- ")]
    fixes = []
    if "Suggested fixes:" in lines:
        for line in lines[lines.index("Suggested fixes:") + 1 :]:
            if "=" not in line or line.startswith("The error"):
                break
            if not re.search(r" = \d+$", line):  # "n = 6" is static
                fixes.append(line)
    advice = (
        f"in dynamic_shapes, as torch suggests: {'; '.join(fixes)}"
        if fixes
        else "give that size as a static one (no dynamic_shapes entry), or write the line without a number: "
        "x.shape[0] ** 0.5 for math.sqrt(x.shape[0]), an op over the dimension for a loop"
    )
    return CaptureError(
        f"{name} does not allow these dynamic_shapes: {' '.join(violations) or first_lines(problem)}",
        where=_line(violations, asked),
        next_step=advice,
    )


def _without_advice(violation: str) -> str:
    return violation.split(" If you're using mark_dynamic")[0]


def _line(violations: Sequence[str], asked: Sequence[Asked]) -> str | None:
    """The line of the first condition with a number that the violations name; else the first line there is."""
    numbers = {int(number) for text in violations for number in re.findall(r"(?<![\w\[.])\d+(?![\w\]])", text)}
    for condition, line in asked:
        if line and any(int(number) in numbers for number in condition.atoms(sympy.Integer)):
            return line
    return next((line for _, line in asked if line), None)


def _advice(problem: Exception) -> str:
    if UNREGISTERED_CACHE.is_in(problem):
        return (
            "build the model with use_cache=False, or register its cache: "
            "transformers.integrations.executorch.register_dynamic_cache_export_support()"
        )
    if isinstance(problem, GuardOnDataDependentSymNode):
        if any("/torch/distributions/" in frame.filename for frame in traceback.extract_tb(problem.__traceback__)):
            return "the distribution checks its parameters' values: make it with validate_args=False"
        return "a value decides there what the model's Python does: compute both ways and choose by torch.where, or use torch.cond"
    if isinstance(problem, DynamicOutputShapeException):
        return f"use another op: {reasons().get(str(problem.func), SHAPE)}"
    return "make the module exportable: torch.export.export(module, args) shows the whole story"


def check_inputs(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Raises CaptureError for an example that is not a dense tensor: nested, masked, or of a class with its own kernels."""
    for path, leaf in pytree.tree_leaves_with_path((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and (leaf.is_nested or is_subclass(leaf)):
            kind = "a nested tensor" if leaf.is_nested else f"a {type(leaf).__name__}, a class with kernels of its own"
            place = "args" if path[0].idx == 0 else "kwargs"  # type: ignore[attr-defined]
            raise CaptureError(
                f"{place}{pytree.keystr(path[1:])} is {kind}; StableHLO has dense tensors",
                next_step="pass the plain tensors that it is made of, and build it in forward: padded values with their lengths or mask",
            )
