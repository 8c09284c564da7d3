"""Each field of SamplingParams gives what vLLM's own CPU backend gives, or is refused by name; none is dropped in silence."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parameters import COMPARED, GREEDY, INTERNAL, REFUSED, TESTED

HERE = Path(__file__).parent
CASES = [(field, name, sampling) for field, cases in COMPARED.items() for name, sampling in cases.items()]
SIZES = {
    "dtype": "float32",
    "max_num_seqs": 16,
    "max_model_len": 512,
    "logprobs_mode": "processed_logprobs",
    "max_logprobs": 40,
}


def test_every_field_is_accounted_for() -> None:
    from vllm import SamplingParams

    fields = {field for field in SamplingParams.__struct_fields__ if not field.startswith("_")}
    tables = [set(COMPARED), set(TESTED), set(REFUSED), INTERNAL]
    assert set().union(*tables) == fields, "a field of SamplingParams is in no table of parameters.py, or is gone"
    assert sum(map(len, tables)) == len(fields), "a field is in two tables"


@pytest.mark.parametrize("field", COMPARED)
def test_what_is_compared_sets_the_field(field: str) -> None:
    """A case that leaves its field as it is would compare nothing."""
    from vllm import SamplingParams

    for name, sampling in COMPARED[field].items():
        assert field in sampling, name
        assert any(sampling[field] != getattr(SamplingParams(), field) for sampling in COMPARED[field].values())


@pytest.mark.parametrize("field", TESTED)
def test_the_test_that_is_named_is_there(field: str) -> None:
    file, _, name = TESTED[field].partition("::")
    assert name in {
        node.name for node in ast.walk(ast.parse((HERE / file).read_text())) if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_refused_names_the_field(field: str) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from fxhlo.runtime.vllm.refusals import check_request

    with pytest.raises(VLLMValidationError) as caught:
        check_request({"type": "token"}, SamplingParams(**REFUSED[field]))
    assert caught.value.parameter in REFUSED[field]
    assert "fxhlo does not support" in str(caught.value)
    assert ":" in str(caught.value), "it says what to do instead"


def test_several_outputs_of_one_request(engine: Callable[..., Any], prompts: list[list[int]]) -> None:
    """n outputs differ, are those of n requests with seeds counted up (as vLLM hands them out), and harm no neighbour."""
    random = {"temperature": 1.0, "seed": 5, "max_tokens": 8, "ignore_eos": True}
    (together, alone), (greedy,) = engine(
        [
            {"prompts": [prompts[8], prompts[10]], "sampling": [{**random, "n": 4}, GREEDY]},
            {"prompts": [prompts[10]], "sampling": GREEDY},
        ],
        dtype="float32",
    )  # fmt: skip
    outputs = [together["tokens"], *together["others"]]
    assert len(outputs) == len({tuple(output) for output in outputs}) == 4
    assert alone["tokens"] == greedy["tokens"]


@pytest.mark.conformance
def test_answers_are_those_of_vllms_own_backend(engine: Callable[..., Any], prompts: list[list[int]]) -> None:
    run = {"prompts": [prompts[6 + index % 8] for index in range(len(CASES))], "sampling": [case[2] for case in CASES]}
    (ours,), (theirs,) = engine([run], **SIZES), engine([run], plugins="", **SIZES)
    for (field, name, _), mine, other in zip(CASES, ours, theirs, strict=True):
        for key in ("tokens", "text", "ended"):
            if "shown" not in name:
                assert mine[key] == other[key], f"{field} ({name}): {key}"
        for key in ("logprobs", "prompt_logprobs"):
            close(mine[key], other[key], f"{field} ({name}): {key}")


@pytest.mark.conformance
def test_raw_logprobs_under_a_grammar_are_those_of_vllms_own_backend(
    engine: Callable[..., Any], prompts: list[list[int]]
) -> None:
    """vLLM masks the logits before it takes their log-probabilities, raw ones too; of prompts it shows those of no mask."""
    wanted = {"logprobs": 6, "prompt_logprobs": 2}
    sampling = [{**case, **wanted} for field, _, case in CASES if field == "structured_outputs"] + [
        {**GREEDY, **wanted}
    ]
    run = {"prompts": [prompts[6 + index % 8] for index in range(len(sampling))], "sampling": sampling}
    sizes = {**SIZES, "logprobs_mode": "raw_logprobs"}
    (ours,), (theirs,) = engine([run], **sizes), engine([run], plugins="", **sizes)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine["tokens"] == other["tokens"]
        for key in ("logprobs", "prompt_logprobs"):
            close(mine[key], other[key], f"{sampling[index]}: {key}")


def close(ours: Any, theirs: Any, where: str) -> None:
    """The same tokens with the same values; a token at the edge of a filter may be on either side."""
    assert (ours is None) == (theirs is None), where
    for mine, other in zip(ours or (), theirs or (), strict=True):
        mine, other = ({entry[0]: entry[1] for entry in entries if entry[1] > -1e30} for entries in (mine, other))
        assert len(set(mine) ^ set(other)) <= 2, where
        for token in set(mine) & set(other):
            assert mine[token] == pytest.approx(other[token], abs=2e-3), where
