"""The whole path, from a torch module to StableHLO. The first file to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch.export import ExportedProgram

from ..passes.program import Program
from ..runtime.core.targets import Target
from .capture.exporting import capture
from .dynamic import DynamicModule
from .module import HloModule


@overload
def lower(
    module: torch.nn.Module,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: None = None,
    bindings: Mapping[str, int] | None = None,
    target: str | Target = "cpu",
) -> HloModule: ...


@overload
def lower(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: Any = None,
    bindings: Mapping[str, int] | None = None,
    target: str | Target = "cpu",
) -> HloModule | DynamicModule: ...


def lower(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: Any = None,
    bindings: Mapping[str, int] | None = None,
    target: str | Target = "cpu",
) -> HloModule | DynamicModule:
    """Lowers `module` to StableHLO.

    args, kwargs: example inputs (an ExportedProgram needs none). dynamic_shapes: as for torch.export.
    bindings: sizes of the symbolic dimensions by name. Where one is not named, the result is a DynamicModule: bind it later, or
    compile it, which compiles a program for each shape that it is called with.
    target: what the module will be compiled for, such as "cpu" or "tpu-v6e:2x2".

    Raises FxhloError: CaptureError, ContractError (everything that has no rule, at once), GuardError, LoweringError.
    """
    target = target if isinstance(target, Target) else Target.parse(target)
    program = capture(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    dynamic = DynamicModule(program, target, dict(bindings or {}))
    if not dynamic.dims:
        return dynamic.bind()
    dynamic.check()
    return dynamic


def lower_program(program: Program, *, bindings: Mapping[str, int] | None = None, target: Target) -> HloModule:
    """Runs the passes and the contract on a captured Program and emits it. Traces nothing: call it again for other bindings.

    bindings: sizes by dimension name; a dimension that is not named takes the example's size.
    """
    return DynamicModule(program, target, dict(bindings or {})).bind_example()
