"""Structured outputs by each of vLLM's backends: what vLLM's own CPU backend answers, in every run on one engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from parameters import CHOICES, GREEDY, SCHEMA

FORMS: list[dict[str, Any]] = [{"json": SCHEMA}, {"choice": CHOICES}, {"regex": r"[a-f]{3}-\d{2}"}]


@pytest.mark.conformance
@pytest.mark.parametrize("backend", ["outlines", "lm-format-enforcer", "guidance"])
def test_every_run_is_that_of_vllms_own_backend(
    backend: str, engine: Callable[..., Any], prompts: list[list[int]]
) -> None:
    """A second run finds grammars and prefixes in caches; a third has its requests one after the other."""
    sampling = [{**GREEDY, "max_tokens": 40, "ignore_eos": False, "structured_outputs": form} for form in FORMS]
    run = {"prompts": prompts[6 : 6 + len(FORMS)], "sampling": sampling}
    runs = [run, run, {**run, "one_by_one": True}]
    sizes = {
        "dtype": "float32",
        "max_num_seqs": 8,
        "max_model_len": 512,
        "structured_outputs_config": {"backend": backend},
    }
    ours, theirs = engine(runs, **sizes), engine(runs, plugins="", **sizes)
    assert [[answer["text"] for answer in answers] for answers in ours] == [
        [answer["text"] for answer in answers] for answers in theirs
    ]
