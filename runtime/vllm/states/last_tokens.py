"""The state of asynchronous scheduling: the token that each row of the batch sampled last, for the step that starts before it is read."""

from __future__ import annotations

from dataclasses import dataclass

from ....passes.fx.feed import LAST_TOKENS
from .spec import StateSpec


@dataclass(frozen=True, kw_only=True)
class LastTokens(StateSpec):
    """int32 [rows of the batch]. A row is read only by the step after the one that wrote it (passes/fx/feed.py)."""

    @classmethod
    def of(cls, rows: int) -> LastTokens:
        """rows: of the batch."""
        return cls(layer="", name=LAST_TOKENS, shape=(rows,), dtype="int32", rows="batch")

    def for_vllm(self) -> None:
        """None: the batch assigns the rows."""
