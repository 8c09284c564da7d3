"""Serves every architecture as a small random model and compares it with transformers: `python -P -m fxhlo.tools.architectures [NAME ...]`.

Comes in: names of architectures or kinds (all of them where none is given). Goes out: a table on standard output.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from .catalog import ARCHITECTURES, KINDS, kind_of
from .compare import FOLDER, LOG, Comparison
from .outcome import Outcome
from .record import Record


def chosen(words: Sequence[str]) -> list[str]:
    """The architectures that the words name, by themselves or by kind."""
    unknown = [word for word in words if word not in ARCHITECTURES and word not in KINDS]
    if unknown:
        raise SystemExit(f"no architecture or kind {', '.join(unknown)}; kinds: {', '.join(KINDS)}")
    return [name for name in ARCHITECTURES if not words or name in words or kind_of(name) in words]


def row(outcome: Outcome) -> str:
    difference = f"{outcome.difference:.1e}" if outcome.runs else ""
    return f"{outcome.name:32} {kind_of(outcome.name):20} {outcome.status:12} {difference:8} {outcome.seconds:5.1f} s  {outcome.reason}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -P -m fxhlo.tools.architectures",
        description="Serves small random models and compares them with transformers.",
    )
    parser.add_argument("name", nargs="*", help="an architecture or a kind; all where none is given")
    parser.add_argument(
        "--eager", action="store_true", help="vLLM's class with fxhlo's layers in eager torch, without an engine"
    )
    parser.add_argument(
        "--record", action="store_true", help="writes the outcomes into docs/models.json; after it, make docs"
    )
    words = parser.parse_args()
    if words.eager and words.record:
        parser.error("--record needs the engine: leave out --eager")
    found = []
    with Comparison(eager=words.eager) as compared:
        for name in chosen(words.name):
            found.append(compared.outcome(name))
            print(row(found[-1]), flush=True)
    print(", ".join(f"{count} {status}" for status, count in Counter(one.status for one in found).items()))
    if words.record:
        Record.load().updated(found).save()
    print(f"tracebacks: {FOLDER / LOG}")


if __name__ == "__main__":
    main()
