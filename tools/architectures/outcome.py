"""What became of one architecture, and the record of all of them (docs/models.json)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["served", "differs", "captures", "refused", "failed", "no reference"]
"""served: equal to transformers in every run. captures: all its ops can be lowered, by its config.json; nothing was compared.
failed: none of these. no reference: transformers could not make the model."""


@dataclass(frozen=True)
class Run:
    """One way of serving all prompts. tokens: "equal", or the first that is not; difference: largest, of a log-probability."""

    name: str
    tokens: str
    difference: float
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """reason: why it is not served; difference: the largest of all runs; seconds: start and all runs."""

    name: str
    status: Status
    reason: str = ""
    difference: float = 0.0
    runs: tuple[Run, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Outcome:
        return cls(**(fields | {"runs": tuple(Run(**run) for run in fields.get("runs", ()))}))
