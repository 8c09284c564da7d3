"""Buckets that are made of one emission are, byte for byte, those that are emitted one by one, for each architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pooling_models import MODELS

from fxhlo.kernels.catalog import kernels
from fxhlo.lowering.buckets import Buckets
from fxhlo.lowering.bundling import Entry
from fxhlo.lowering.compiling import legalized_to_run
from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.emit.template import Template
from fxhlo.lowering.errors import GuardError
from fxhlo.lowering.ops import shape
from fxhlo.passes.pipeline import run
from fxhlo.passes.program import Program
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step, options_of
from fxhlo.runtime.vllm.steps.passes import step_passes
from fxhlo.tools.architectures.catalog import ARCHITECTURES

ENCODERS = {MODELS[name].kind: MODELS[name] for name in ("bert", "modernbert", "roberta_classifier", "gte")}
QUICK = (
    "BertModel",
    "ModernBertModel",
    "LlamaForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "MambaForCausalLM",
    "Qwen3NextForCausalLM",
)
BUCKETS = ((8, 8), (1, 1), (2, 2), (2, 1), (3, 1), (4, 4), (16, 8), (32, 16), (64, 16), (48, 4), (128, 2), (256, 1))
SHARED = {"num_blocks": 64, "num_slots": 17}


def program_of(name: str, folder: Path) -> Program:
    """The step of a model that generates, or of one of ENCODERS, as an engine on one CPU makes it."""
    import transformers

    architecture = ENCODERS.get(name) or ARCHITECTURES[name]
    config = getattr(transformers, architecture.config)(**architecture.sizes).to_dict()
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": [name], "dtype": "float32"}, default=str)
    )
    made = engine_config(str(folder), dtype="float32", max_model_len=None, max_num_seqs=16)
    model = build_model(made, weights=False)
    return run(step_passes(options_of(made, model, Target("cpu"))), capture_step(made, model))


def singly(program: Program, sizes: dict[str, int], target: str) -> Entry:
    return Entry.of(replace(emit(program, sizes, references=False), target=target), legalized_to_run)


def compared(program: Program, target: str) -> int:
    """How many buckets were emitted by themselves, of BUCKETS."""
    dims = {dim.name for dim in program.dims}
    shared = {name: size for name, size in SHARED.items() if name in dims}
    buckets, count = Buckets(program, Target.parse(target), shared), 0
    for tokens, requests in BUCKETS:
        sizes = {name: size for name, size in (("tokens", tokens), ("requests", requests)) if name in dims}
        try:
            expected = singly(program, {**shared, **sizes}, target)
        except GuardError:
            continue
        got = buckets.entry(sizes)
        assert got.legal == expected.legal, sizes
        assert (got.signature, got.bindings, got.target) == (expected.signature, expected.bindings, expected.target)
        count += 1
    assert count >= 6
    return len(buckets.emitted)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.conformance) for name in sorted({*ARCHITECTURES, *ENCODERS})],
)
def test_buckets_are_those_that_are_emitted_one_by_one(name: str, tmp_path: Path) -> None:
    try:
        program = program_of(name, tmp_path)
    except FxhloError as problem:
        if name in QUICK:
            raise
        pytest.skip(f"not built: {problem}")
    alone = compared(program, "cpu")
    print(f"{name}: {alone} of {len(BUCKETS)} emitted")
    assert alone <= 8 or name not in QUICK  # some of those whose size the tiny model has elsewhere are emitted by themselves


def test_a_template_that_gives_other_bytes_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Template, "at", lambda self, numbers: self.module)
    assert compared(program_of("LlamaForCausalLM", tmp_path), "cpu") == len(BUCKETS)


def test_a_template_that_is_no_module_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slice's start nobody knows that it depends on a size: at small sizes it lies behind the end."""
    monkeypatch.setattr(shape, "bounds", lambda size, start, end: slice(start, end).indices(size)[:2])
    assert compared(program_of("BertModel", tmp_path), "cpu") > 4  # as many as there are without the fault


def test_what_a_kernel_takes_by_size_is_asked_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation of RMSNorm that wants 20 rows at most: the templates are for more."""
    kernel = kernels()["fxhlo.rms_norm"]
    (native,) = kernel.implementations
    few = replace(
        native, name="few", supports=lambda operands, attributes: "too many" if operands[0].shape[0] > 20 else None
    )
    monkeypatch.setitem(kernels(), "fxhlo.rms_norm", replace(kernel, implementations=(few, native)))
    program = program_of("LlamaForCausalLM", tmp_path)
    assert compared(program, "cpu") > sum(tokens <= 20 for tokens, _ in BUCKETS)
