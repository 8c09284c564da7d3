"""The whole path, from a torch module to StableHLO. The first file to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram

from ..passes.default import default_passes
from ..passes.pipeline import run
from ..passes.program import Program
from ..runtime.core.targets import Target
from .capture.exporting import capture
from .emit.coverage import check
from .emit.emit import emit
from .module import HloModule


def lower(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    bindings: Mapping[str, int] | None = None,
    target: str | Target = "cpu",
) -> HloModule:
    """Lowers `module` to StableHLO.

    args, kwargs: example inputs (an ExportedProgram needs none). dynamic_shapes: as for torch.export.
    bindings: sizes of the symbolic dimensions by name; one that is not named takes the example's size.
    target: where it will be compiled for, such as "cpu" or "tpu-v6e:2x2".

    Raises FxhloError: CaptureError, ContractError (everything that has no rule, at once), GuardError, LoweringError.
    """
    target = target if isinstance(target, Target) else Target.parse(target)
    program = capture(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    return lower_program(program, bindings=bindings, target=target)


def lower_program(program: Program, *, bindings: Mapping[str, int] | None = None, target: Target) -> HloModule:
    """Passes, contract and emission of a captured Program; call it again with other bindings: nothing is traced."""
    finished = run(default_passes(), program)
    check(finished, bindings)
    return replace(emit(finished, bindings), target=str(target))
