"""What can go wrong between a torch module and StableHLO. Every error says what, where and what to do next."""

from __future__ import annotations

from ..runtime.errors import FxhloError


class CaptureError(FxhloError):
    """The model could not be captured as a graph of ATen and fxhlo ops."""


class LoweringError(FxhloError):
    """A rule could not lower its op, or built something else than the graph says."""


class MissingRulesError(FxhloError):
    """The graph holds ops without a rule; `missing` lists all of them (lowering.coverage.Missing)."""

    def __init__(self, message: str, *, missing: tuple = (), where: str | None = None, next_step: str | None = None) -> None:
        super().__init__(message, where=where, next_step=next_step)
        self.missing = missing


class GuardError(FxhloError):
    """A binding of the symbolic dimensions breaks an assumption that the capture made."""
