"""What users read when something goes wrong: whole texts, with the file and line of theirs, and what to do next.

Every kind of error of the project has its case in one of the *_texts.py beside this file; a new kind without one fails
`test_every_kind_of_error_has_a_case`. `.*` in an expected text stands for what another library says.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import engine_texts
import front_texts
import lowering_texts
import pytest
import runtime_texts

import fxhlo
from fxhlo.passes.contract import ContractError
from fxhlo.runtime.core.errors import FxhloError

ROOT = Path(__file__).resolve().parents[2]
CASES = {**lowering_texts.CASES, **runtime_texts.CASES, **front_texts.CASES, **engine_texts.CASES}


@pytest.mark.parametrize("case", CASES)
def test_the_text(case: str, tmp_path: Path) -> None:
    kind, provoke, expected = CASES[case]
    with pytest.raises(kind) as caught:
        provoke(tmp_path)
    text = re.sub(rf"{re.escape(str(Path(__file__).parent))}/\w+\.py:\d+", "HERE", str(caught.value))
    text = re.sub(r"/\S+/fxhlo-refused-\w+\.mlir", "REFUSED", text.replace(str(tmp_path), "TMP"))
    assert type(caught.value) is kind
    if ".*" in expected:
        pattern = ".*".join(map(re.escape, expected.split(".*")))
        assert re.fullmatch(pattern, text, re.DOTALL), text
    else:
        assert text == expected


def kinds_of_errors() -> set[tuple[str, str]]:
    """(module, name) of every class that derives from FxhloError, as the source declares them."""
    bases: dict[tuple[str, str], set[str]] = {}
    for floor in ("fxhlo", "kernels", "lowering", "passes", "runtime", "tools"):
        for path in (ROOT / floor).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases[module, node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    names, before = {"FxhloError"}, set()
    while names != before:
        before = set(names)
        names |= {name for (_, name), given in bases.items() if given & names}
    return {kind for kind, given in bases.items() if given & names}


def test_every_kind_of_error_has_a_case() -> None:
    tried = {(kind.__module__.removeprefix("fxhlo."), kind.__name__) for kind, _, _ in CASES.values()}
    kinds = kinds_of_errors()
    assert len(kinds) > 15
    assert not kinds - tried


def test_every_text_says_what_to_do() -> None:
    silent = [name for name, (_, _, text) in CASES.items() if "\n  next: " not in text]
    assert not silent


def test_the_line_is_the_line() -> None:
    with pytest.raises(ContractError) as caught:
        fxhlo.lower(lowering_texts.Module(lowering_texts.several_things), (lowering_texts.X,))
    lines = Path(lowering_texts.__file__).read_text().splitlines()
    for missing, holds in zip(caught.value.missing, ("eigvals(x)", "unique(x)", "x[mask]"), strict=True):
        assert missing.where is not None
        assert holds in lines[int(missing.where.rpartition(":")[2]) - 1]


def test_it_crosses_a_process() -> None:
    import pickle

    problem = FxhloError("what", where="there", next_step="this")
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)
