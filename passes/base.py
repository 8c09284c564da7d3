"""The base of passes: a frozen dataclass whose fields are its options, called with a Program, returning a Program."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from inspect import getdoc
from typing import ClassVar

from .program import Program
from .step_inputs import StepInput


@dataclass(frozen=True)
class Pass:
    """Base of all graph passes. name: on the command line (`--print-after NAME`), the class's name with dashes."""

    name: ClassVar[str] = "pass"

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        """The inputs of an engine's step that the pass adds to the program."""
        return ()

    @classmethod
    def summary(cls) -> str:
        """What it does: the first sentence of its file's docstring, on one line."""
        text = " ".join((getdoc(sys.modules[cls.__module__]) or "").split())
        head, dot, _ = text.partition(". ")
        return head + dot.strip()

    def __call__(self, program: Program) -> Program:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")
