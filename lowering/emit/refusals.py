"""Collects the refusals of rules during one emission, so that one error lists them all."""

from __future__ import annotations

from torch import fx

from ...passes.contract import Missing, cannot_be_lowered
from ...passes.program import where
from ...runtime.core.errors import FxhloError
from ..registry import overload_name


class Refusals:
    """The nodes whose rules refused, each with the error."""

    def __init__(self) -> None:
        self._found: list[tuple[fx.Node, FxhloError]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, node: fx.Node, problem: FxhloError) -> None:
        """Adds `problem` once, although an op in a region that is emitted twice raises it twice."""
        if not any(problem is other for _, other in self._found):
            self._found.append((node, problem))

    def by_op(self) -> tuple[Missing, ...]:
        """One entry for each op and reason."""
        found: dict[tuple[str, str], list[str | None]] = {}
        for node, problem in self._found:
            reason = problem.message + (f": {problem.next_step}" if problem.next_step else "")
            found.setdefault((overload_name(node.target), reason), []).append(problem.where or where(node))
        return tuple(Missing(name, len(places), places[0], reason=reason) for (name, reason), places in found.items())

    def raise_all(self) -> None:
        """Raises a single refusal unchanged, and several as one ContractError; returns if there is none."""
        if len(self._found) == 1:
            raise self._found[0][1]
        if self._found:
            raise cannot_be_lowered(self.by_op())
