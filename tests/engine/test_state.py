"""What a step may not do: copy the KV cache, make a program while serving, bring more than tokens to the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SIZES = {"tokens": 8, "requests": 8}


@pytest.fixture(scope="module")
def program(model: Path) -> Any:
    from fxhlo.passes.pipeline import run
    from fxhlo.runtime.vllm.steps.capture import capture_model

    captured, passes = capture_model(str(model), dtype="bfloat16", max_model_len=1024, max_num_seqs=8)
    return run(passes, captured)


@pytest.fixture(scope="module")
def compiled(program: Any) -> dict[int, Any]:
    """num_blocks -> the executable of one bucket."""
    from fxhlo.lowering.emit.emit import emit

    return {blocks: emit(program, {**SIZES, "num_blocks": blocks}).compile() for blocks in (64, 1024)}


def test_every_cache_is_donated_and_nothing_else_grows_with_it(compiled: dict[int, Any]) -> None:
    sizes = {}
    for blocks, executable in compiled.items():
        states = executable.signature.states
        assert len(states) == 30
        assert all(state.alias is not None for state in states)
        sizes[blocks] = sum(state.nbytes for state in states)
        assert executable.memory.aliased == sizes[blocks], "the compiled module updates every cache in place"
    small, large = (compiled[blocks].memory for blocks in (64, 1024))
    assert sizes[1024] == 16 * sizes[64]
    assert large.temporaries == small.temporaries, "a copy of a cache would be a temporary"
    assert large.outputs - large.aliased == small.outputs - small.aliased


def test_a_step_gives_tokens_and_what_was_asked_for_to_the_host(compiled: dict[int, Any]) -> None:
    signature = compiled[64].signature
    left = [result.name for result in signature.results if result.alias is None]
    assert left[0] == "tokens"
    assert all(name.startswith("logprob") for name in left[1:]), left
    memory = compiled[64].memory
    assert memory.outputs - memory.aliased < 4096 * SIZES["requests"], "no row of logits is among the results"


def test_nothing_is_traced_or_compiled_once_the_engine_is_ready(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real engine in this process: its captures and compilations are counted, and an attempt to add one raises."""
    import torch
    from vllm import LLM, SamplingParams

    from fxhlo.lowering.capture import tracing
    from fxhlo.lowering.capture.exporting import capture
    from fxhlo.runtime.core import pjrt
    from fxhlo.runtime.core.seal import SealedError

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    llm = LLM(str(model), dtype="bfloat16", max_model_len=256, max_num_seqs=8, max_num_batched_tokens=256, seed=0)
    try:
        before = tracing.captures
        made: list[int] = []
        monkeypatch.setattr(pjrt.Device, "_compile", lambda *_, **__: made.append(1))
        params = [
            SamplingParams(temperature=0.0, max_tokens=4),
            SamplingParams(temperature=1.0, top_k=5, logprobs=3, max_tokens=4),
            SamplingParams(temperature=0.7, top_p=0.5, repetition_penalty=1.2, logit_bias={3: 1.0}, max_tokens=4),
        ]
        for length in (1, 7, 9, 33, 200):
            prompts: Any = [{"prompt_token_ids": list(range(2, 2 + length))}] * len(params)
            assert len(llm.generate(prompts, params, use_tqdm=False)) == len(params)
        assert tracing.captures == before
        assert not made
        with pytest.raises(SealedError, match="after the engine is ready"):
            capture(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        with pytest.raises(SealedError, match="after the engine is ready"):
            pjrt.compile(b"", "cpu")
        assert not made
    finally:
        llm.llm_engine.engine_core.shutdown()
