"""What a pass is: a frozen dataclass whose fields are its options, called with a Program and giving a Program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from .program import Program
from .step_inputs import StepInput


@dataclass(frozen=True)
class Pass:
    """Base of all graph passes. `name` is the one on the command line (`--print-after NAME`)."""

    name: ClassVar[str] = "pass"

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        """The inputs of an engine's step that the pass adds to the program."""
        return ()

    def __call__(self, program: Program) -> Program:
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")
