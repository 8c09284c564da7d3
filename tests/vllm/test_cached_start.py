"""A start whose programs are in the cache imports nothing that it does not use, and does not walk over what it imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.runtime.vllm import early, plugin

ENGINE = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
out = os.dup(1)
os.dup2(2, 1)
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], max_model_len=64, max_num_seqs=2, max_num_batched_tokens=16, kv_cache_memory_bytes=4 << 20, dtype="float32",
          load_format="dummy", skip_tokenizer_init=True, seed=0, disable_log_stats=True)
llm.generate([{"prompt_token_ids": [2, 3, 4]}], SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False), use_tqdm=False)
os.write(out, json.dumps(sorted(sys.modules)).encode())
llm.llm_engine.engine_core.shutdown()
"""
UNUSED = (
    "fxhlo.lowering", "fxhlo.passes.mlir", "fxhlo.passes.pipeline", "fxhlo.passes.hlo.legalize", "fxhlo.passes.contract", "fxhlo.tools",
    "jax.experimental.pallas", "jax._src.pallas", "jax.experimental.topologies",
    "vllm.model_executor.layers.quantization.online", "compressed_tensors", "pandas", "matplotlib",
    "torch._inductor.lowering", "torch._inductor.kernel", "torch._inductor.standalone_compile", "torch._dynamo", "torch._functorch.aot_autograd",
    "scipy.signal", "scipy.stats", "scipy.optimize", "transformers.modeling_utils", "transformers.generation.utils", "torch.distributed.tensor", "accelerate",
    "grpc", "opentelemetry.exporter", "opentelemetry.sdk.trace",
    "vllm.model_executor.models.deepseek_v2", "vllm.model_executor.layers.fused_moe.runner",
)  # fmt: skip
"""What makes programs: the lowering floor, Pallas, torch's exporter and compilers; what early.py puts off; what only other models have."""


def started(folder: Path, cache: Path) -> list[str]:
    environment = {
        **os.environ,
        "FXHLO_CACHE_DIR": str(cache),
        "FXHLO_NATIVE": "0",
    }  # which the first start would build there
    run = subprocess.run(
        [sys.executable, "-P", "-c", ENGINE, str(folder)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_a_cached_start_imports_nothing_that_makes_programs(folder: Path, tmp_path: Path) -> None:
    assert any(name.startswith("fxhlo.lowering") for name in started(folder, tmp_path)), (
        "the first start makes the programs"
    )
    assert not [name for name in started(folder, tmp_path) if name.startswith(UNUSED)]


PUT_OFF = """
import sys
from vllm import LLM
from vllm.multimodal import audio
from vllm.model_executor.layers.vocab_parallel_embedding import get_masked_input_and_mask
from vllm.compilation import decorators
from vllm.tracing import otel
from transformers import processing_utils
from transformers.integrations import hub_kernels
from transformers.models.auto import auto_factory
from transformers.utils import import_utils
import torch
for name in ("scipy.stats", "torch._dynamo", "torch._inductor.lowering", "transformers.modeling_utils", "transformers.generation.utils", "grpc"):
    assert name not in sys.modules, name
assert torch._inductor.config.deterministic is False and "torch._dynamo" not in sys.modules

assert audio.scipy_signal.resample_poly([1.0, 1.0, 1.0, 1.0], 1, 2).shape == (2,)
import scipy.signal
assert audio.scipy_signal.resample_poly is scipy.signal.resample_poly

import opentelemetry.sdk.trace
assert "opentelemetry.sdk.trace" in sys.modules and otel.TracerProvider is opentelemetry.sdk.trace.TracerProvider
assert otel.get_span_exporter("http://localhost:1").__class__.__module__ == "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"

from transformers import GenerationMixin, modeling_utils
model = type("Model", (torch.nn.Module,), {"generate": 1, "prepare_inputs_for_generation": 1})
assert GenerationMixin in auto_factory.add_generation_mixin_to_remote_model(model).__mro__
assert auto_factory.GenerationMixin is GenerationMixin
assert processing_utils.PreTrainedAudioTokenizerBase is modeling_utils.PreTrainedAudioTokenizerBase
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
assert hub_kernels.register_checkpoint_conversion_mapping is register_checkpoint_conversion_mapping

folder = import_utils.__file__.replace("utils/import_utils.py", "models")
import inspect
kept, looked = import_utils.define_import_structure, inspect.unwrap(import_utils.define_import_structure)
assert looked.__code__.co_filename == import_utils.__file__ and kept.__wrapped__.__code__.co_filename != import_utils.__file__
assert kept(folder, prefix="models") == looked(folder, prefix="models") and kept(f"{folder}/__init__.py") == looked(f"{folder}/__init__.py")
assert kept(f"{folder}/llama/__init__.py") == looked(f"{folder}/llama/__init__.py")

masked, _ = get_masked_input_and_mask(torch.tensor([1, 5, 9]), 0, 4, 0, 8, 8)
assert masked.tolist() == [1, 0, 0] and "torch._dynamo" in sys.modules
from torch._dynamo.symbolic_convert import InliningInstructionTranslator
assert decorators.InliningInstructionTranslator.inline_call_ == InliningInstructionTranslator.inline_call_
assert torch.compile(lambda one: one + 1, backend="eager")(torch.ones(1)) == 2
assert callable(torch._inductor.compile) and "torch._inductor.standalone_compile" in sys.modules
import torch._inductor.graph, torch._inductor.lowering
assert type(torch._inductor) is type(sys) and torch._inductor.lowering is sys.modules["torch._inductor.lowering"]
for module in (torch._inductor.graph, torch._inductor.lowering):
    assert "vllm::an_op" in module.FALLBACK_ALLOW_LIST and "others::an_op" not in module.FALLBACK_ALLOW_LIST
"""


def test_what_was_put_off_is_there_when_it_is_asked_for() -> None:
    """As vLLM and transformers would have left it: whoever uses a name gets the real thing, and torch's compiler falls back for vLLM's ops."""
    run = subprocess.run([sys.executable, "-P", "-c", PUT_OFF], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({}, True),
        ({"VLLM_PLUGINS": "other,fxhlo"}, True),
        ({"VLLM_PLUGINS": ""}, False),
        ({"VLLM_PLUGINS": "other"}, False),
        ({"VLLM_TARGET_DEVICE": "cpu"}, False),
        ({"torch alone": "1"}, False),
    ],
    ids=str,
)
def test_only_an_engine_of_ours_begins_early(
    changed: dict[str, str], begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for name in ("VLLM_PLUGINS", "VLLM_TARGET_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plugin.collection, "pause", lambda: said.append("paused"))
    monkeypatch.setattr(early, "put_off", lambda: said.append("put off"))
    modules = {} if "torch alone" in changed else {"vllm": plugin}
    monkeypatch.setattr(plugin.sys, "modules", {**{k: v for k, v in sys.modules.items() if k != "vllm"}, **modules})
    plugin.begin()
    assert said == (["paused", "put off"] if begins else [])


COLLECTING = """
import gc, json, time
from fxhlo.runtime.vllm import collection
said = []
collection.PAUSED, collection.FROZEN = 0.2, 0.2
{before}
collection.pause()
said.append(gc.isenabled())
{between}
said.append((gc.isenabled(), gc.get_freeze_count() > 0))
time.sleep(0.6)
said.append((gc.isenabled(), gc.get_freeze_count() > 0))
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    ("before", "between", "after"),
    [
        ("", "collection.resume(own=True)", [False, [True, True], [True, True]]),
        (
            "collection.multiprocessing.parent_process = lambda: 1",
            "collection.freeze_here()",
            [False, [True, True], [True, True]],
        ),
        ("", "collection.resume(own=False)", [False, [True, True], [True, False]]),
        ("", "pass", [False, [False, False], [True, False]]),
        ("", "collection.resume(own=False); collection.pause()", [False, [True, True], [True, False]]),
        ("gc.disable()", "collection.resume(own=True)", [False, [False, False], [False, False]]),
    ],
    ids=[
        "vLLM's own process",
        "a process that vLLM started",
        "a user's process",
        "no engine",
        "once in a process",
        "switched off by the user",
    ],
)
def test_garbage_is_collected_again(before: str, between: str, after: list[object]) -> None:
    code = COLLECTING.format(before=before, between=between)
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == after
