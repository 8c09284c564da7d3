"""Serves every architecture as a small random model and compares it with transformers: `python -P -m fxhlo.tools.architectures [NAME ...]`.

Comes in: names of architectures or kinds (all of them where none is given). Goes out: a table on standard output.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from .catalog import ARCHITECTURES, DRAWN, KINDS, drawn_names, kind_of
from .compare import FOLDER, LOG, REFUSED_AS_A_WHOLE, Comparison, Examination
from .drawn import FAMILIES
from .outcome import Outcome
from .record import Record


def chosen(words: Sequence[str]) -> list[str]:
    """The architectures that the words name, by themselves or by kind; and random models, by a family and a seed."""
    drawn = [word for word in words if DRAWN in word]
    named = [word for word in words if word not in drawn]
    unknown = [word for word in named if word not in ARCHITECTURES and word not in KINDS]
    unknown += [word for word in drawn if word.partition(DRAWN)[0] not in FAMILIES]
    if unknown:
        raise SystemExit(f"no architecture or kind {', '.join(unknown)}; kinds: {', '.join(KINDS)}")
    return [name for name in ARCHITECTURES if not words or name in named or kind_of(name) in named] + drawn


def drawn(families: Sequence[str], seeds: str) -> list[str]:
    """Names of random models. seeds: "FIRST:END"."""
    first, _, end = seeds.partition(":")
    return drawn_names(families or FAMILIES, range(int(first), int(end)))


def row(outcome: Outcome) -> str:
    difference = f"{outcome.difference:.1e}" if outcome.runs else ""
    return f"{outcome.name:32} {kind_of(outcome.name):20} {outcome.status:12} {difference:8} {outcome.seconds:5.1f} s  {outcome.reason}"


def examined(names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[Outcome]]:
    """vLLM's registry, and what became of the keys that are neither compared nor refused as a whole; of `names` where there are some."""
    found = []
    with Examination() as examination:
        registry = examination.registry()
        for key in dict.fromkeys(
            key for title, keys in registry.items() if title not in REFUSED_AS_A_WHOLE for key in keys
        ):
            if key not in ARCHITECTURES and (not names or key in names):
                found.append(one := examination.outcome(key))
                print(f"{one.name:44} {one.status:10} {one.reason}", flush=True)
    return registry, found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -P -m fxhlo.tools.architectures",
        description="Serves small random models and compares them with transformers.",
    )
    parser.add_argument("name", nargs="*", help="an architecture or a kind; all where none is given")
    parser.add_argument(
        "--random",
        metavar="SEEDS",
        help=f"random models with these seeds, as 0:20, of all families, or of those that are named; NAME{DRAWN}SEED is one of them",
    )
    parser.add_argument(
        "--eager", action="store_true", help="vLLM's class with fxhlo's layers in eager torch, without an engine"
    )
    parser.add_argument(
        "--record", action="store_true", help="writes the outcomes into docs/models.json; after it, make docs"
    )
    parser.add_argument(
        "--examine",
        action="store_true",
        help="also the registry's other keys, as lower-model check does; --record keeps them",
    )
    words = parser.parse_args()
    if words.record and (words.eager or words.random or any(DRAWN in name for name in words.name)):
        parser.error("--record needs the engine and the models of the catalog: leave out --eager and random models")
    names = drawn(words.name, words.random) if words.random else words.name
    found = []
    with Comparison(eager=words.eager) as compared:
        for name in [] if words.examine else chosen(names):
            found.append(compared.outcome(name))
            print(row(found[-1]), flush=True)
    print(", ".join(f"{count} {status}" for status, count in Counter(one.status for one in found).items()))
    record = Record.load().updated(found)
    if words.examine:
        record = record.with_registry(*examined(words.name))
    if words.record:
        record.save()
    print(f"tracebacks: {FOLDER / LOG}")


if __name__ == "__main__":
    main()
