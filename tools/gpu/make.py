"""The bundle that `make gpu` takes along: the decode step of a model as vLLM serves it, from its config alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.core.bundle import Bundle
from ..bench.decoder import SHAPES, Shape
from ..bench.tpu import CONFIG, PAGE

MODEL = {**CONFIG, "num_hidden_layers": 32}
"""Llama 3.1 8B."""
ENTRY = "decode"


def make(folder: Path, target: str, config: Mapping[str, Any] = MODEL, shape: Shape = SHAPES["decode"]) -> Bundle:
    """Captures the step of vLLM's model, and writes its portable module and the one for the target. No weight is read. Raises FxhloError."""
    from ...lowering.compiling import legalized
    from ...lowering.emit.emit import emit
    from ...passes.pipeline import run
    from ..lower.capture import quiet_vllm

    quiet_vllm()
    from ...runtime.vllm.steps.capture import capture_model

    with tempfile.TemporaryDirectory(prefix="fxhlo-gpu-") as model:
        (Path(model) / "config.json").write_text(json.dumps(dict(config)))
        program, passes = capture_model(model, max_model_len=2 * shape.context, max_num_seqs=shape.requests)
    sizes = {
        "tokens": shape.requests * shape.tokens,
        "requests": shape.requests,
        "num_blocks": shape.requests * shape.context // PAGE,
    }
    module = replace(emit(run(passes, program), sizes), target=target)
    notes = {"config": dict(config), "requests": shape.requests, "context": shape.context, "page": PAGE}
    with Bundle.create(folder, name=str(config["architectures"][0]), notes=notes) as writer:
        writer.add_entry(ENTRY, module.bytecode, module.signature, bindings=module.bindings)
        made = legalized(module)
        writer.add_target(ENTRY, target, module=made.bytecode, custom_calls=made.custom_calls)
    return Bundle.open(folder)
