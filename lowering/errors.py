"""What can go wrong between a torch module and StableHLO. Every error says what, where and what to do next."""

from __future__ import annotations

from ..runtime.core.errors import FxhloError


class CaptureError(FxhloError):
    """The model could not be captured as a graph of ATen and fxhlo ops."""


class LoweringError(FxhloError):
    """A rule could not lower its op, or built something else than the graph says."""


class GuardError(FxhloError):
    """A binding of the symbolic dimensions breaks an assumption that the capture made."""
