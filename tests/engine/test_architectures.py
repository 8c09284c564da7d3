"""Every text architecture as a small random model: what is served is equal to transformers, whole and in chunks, cached, alone and preempted.

docs/models.json has what became of each key of vLLM's registry in the last run (`make architectures`), and docs/models.md is made of it; here
each must become the same again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxhlo.runtime.vllm import compat
from fxhlo.tools.architectures.catalog import ARCHITECTURES, KINDS, kind_of
from fxhlo.tools.architectures.compare import FOLDER, LOG, REFUSED_AS_A_WHOLE, Comparison, Examination
from fxhlo.tools.architectures.record import Record

QUICK = (
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "DeepseekV3ForCausalLM",
    "MambaForCausalLM",
    "Qwen3NextForCausalLM",
    "GlmForCausalLM",
)
"""At least one of each kind; windows beside full attention; states beside a cache."""
RANDOM = "DeepseekV3ForCausalLM@3"
RECORD = Record.load()


@pytest.fixture(scope="module")
def compared() -> Iterator[Comparison]:
    """One process for all of them: importing vLLM takes longer than serving a small model."""
    with Comparison() as comparison:
        yield comparison


@pytest.fixture(scope="module")
def examined() -> Iterator[Examination]:
    with Examination() as examination:
        yield examination


def test_there_is_a_quick_one_of_each_kind() -> None:
    assert {kind_of(name) for name in QUICK} == set(KINDS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in ARCHITECTURES],
)
def test_an_architecture_is_what_the_record_says(name: str, compared: Comparison) -> None:
    outcome, recorded = compared.outcome(name), RECORD.outcomes[name]
    log = (FOLDER / LOG).read_text(errors="replace")[-3000:]
    assert outcome.status == recorded.status, f"{outcome}\nbut the record says {recorded}; log: {log}"
    if outcome.status == "served":
        assert {run.name for run in outcome.runs} >= {"whole", "chunks", "alone", "preempted"}
        if kind_of(name) in ("state space", "hybrid"):
            cached = next(run for run in outcome.runs if run.name == "cached")
            assert cached.note != "0 tokens", "a prefix and its state are found"


def test_a_random_model_is_served(compared: Comparison) -> None:
    """One of those of tests/conformance/test_random_models.py."""
    outcome = compared.outcome(RANDOM)
    assert outcome.status == "served", f"{outcome}; log: {(FOLDER / LOG).read_text(errors='replace')[-3000:]}"


@pytest.mark.conformance
@pytest.mark.parametrize("key", RECORD.examined)
def test_what_is_not_compared_is_what_the_record_says(key: str, examined: Examination) -> None:
    outcome = examined.outcome(key)
    assert outcome.status == RECORD.examined[key].status, outcome


def test_every_key_of_the_registry_is_in_the_record() -> None:
    assert RECORD.registry == compat.registered()
    keys = {key for title, names in RECORD.registry.items() if title not in REFUSED_AS_A_WHOLE for key in names}
    assert keys - ARCHITECTURES.keys() == RECORD.examined.keys()
    assert RECORD.outcomes.keys() == ARCHITECTURES.keys()
