"""Errors of lowering a torch module to StableHLO. Each says what is wrong, where, and what to do next."""

from __future__ import annotations

from ..runtime.core.errors import FxhloError


class CaptureError(FxhloError):
    """The model could not be captured as a graph of ATen and fxhlo ops."""


class LoweringError(FxhloError):
    """A rule cannot lower its op, or built a result of another type than the graph states."""


class GuardError(FxhloError):
    """A binding of the symbolic dimensions breaks an assumption of the capture."""
