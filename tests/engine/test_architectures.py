"""Every text architecture as a small random model: what is served is equal to transformers, whole and in chunks, cached, alone and preempted.

docs/models.json has what became of each in the last whole run (`make architectures`), and docs/models.md is made of it; here each must
become the same again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxhlo.tools.architectures.catalog import ARCHITECTURES
from fxhlo.tools.architectures.compare import FOLDER, LOG, Comparison
from fxhlo.tools.architectures.record import Record

QUICK = ("Qwen3ForCausalLM", "Gemma2ForCausalLM", "YoutuForCausalLM")
"""Full attention, windows beside it, and latent attention."""


@pytest.fixture(scope="module")
def compared() -> Iterator[Comparison]:
    """One process for all of them: importing vLLM takes longer than serving a small model."""
    with Comparison() as comparison:
        yield comparison


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in ARCHITECTURES]
)
def test_an_architecture_is_what_the_record_says(name: str, compared: Comparison) -> None:
    outcome, recorded = compared.outcome(name), Record.load().outcomes[name]
    log = (FOLDER / LOG).read_text()[-3000:]
    assert outcome.status == recorded.status, f"{outcome}\nbut the record says {recorded}; log: {log}"
    if outcome.status == "served":
        assert {run.name for run in outcome.runs} >= {"whole", "chunks", "alone", "preempted"}
