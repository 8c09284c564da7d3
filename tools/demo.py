"""`make demo`: the whole pipeline on a real model, each stage timed, and answers through vLLM's engine at the end.

In: nothing but the environment. Out: text on the terminal; build/models holds the prepared model and fxhlo's cache the
compiled programs, so that a second run only loads them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import typer

from ..runtime.core.errors import FxhloError
from . import console
from .prepare_model import prepare

QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Why is the sky blue? Answer in one sentence.",
    "Write a haiku about compilers.",
)

app = typer.Typer(add_completion=False)

# XLA's threads are running when the engine starts, and a process with threads must not be forked.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # Triton is not installed, and not needed

STARTED = perf_counter()


def _compiler(folder: str, dtype: str) -> None:
    """Runs the compiler's stages for one bucket, as the engine does for each of its programs.

    The bundle is cached: a later run loads it, as the engine loads its own, and captures nothing.
    """
    with console.stage("libraries"):
        from ..runtime.core import native, pjrt
        from ..runtime.core.bundle import Bundle
        from ..runtime.core.cache import Cache
        from ..runtime.vllm.steps.identity import source_digest

        native.prepare()  # a C++ compiler takes as long as capture does, and runs beside it
    config = (Path(folder) / "config.json").read_text()
    key = {"demo": dtype, "config": config, "sources": source_digest(), "machine": pjrt.fingerprint("cpu")}
    found = Cache().get(key)
    if found is None:
        Cache().put(key, lambda directory: _compile(folder, dtype, directory))
        return
    with console.stage("bundle") as came_out:
        bundle = Bundle.open(found)
        executable = bundle.executable(next(iter(bundle)))
        came_out(
            f"captured and compiled by an earlier run; {executable.memory.aliased / 1e6:.0f} MB of KV cache in place"
        )


def _compile(folder: str, dtype: str, directory: Path) -> None:
    """Capture, passes, emission, legalization, compilation; writes the bundle into `directory`."""
    with console.stage("vLLM"):
        from ..lowering.emit.coverage import check
        from ..lowering.emit.emit import emit
        from ..passes.pipeline import run
        from ..runtime.core import pjrt
        from ..runtime.core.bundle import Bundle
        from ..runtime.vllm import compat  # noqa: F401 - vLLM's models and layers
        from ..runtime.vllm.steps.capture import capture_model
    with console.stage("capture") as came_out:
        program, passes = capture_model(folder, dtype=dtype, max_model_len=1024, max_num_seqs=8)
        came_out(f"vLLM's own LlamaForCausalLM, {len(program.graph.nodes)} nodes")
    with console.stage("passes") as came_out:
        program = run(passes, program)
        check(program)
        came_out(", ".join(step.name for step in passes))
    with console.stage("emit") as came_out:
        module = emit(program, {"tokens": 8, "requests": 8, "num_blocks": 512})
        came_out(f"StableHLO, {len(module.bytecode) / 1e3:.0f} kB portable")
    with console.stage("legalize") as came_out:
        legalized = module.legalized()
        chosen = {f"{one.kernel}: {one.implementation or 'reference'}" for one in legalized.decisions}
        came_out(", ".join(sorted(chosen)))
    with console.stage("compile") as came_out:
        compiled = pjrt.compile(legalized.bytecode, "cpu", custom_calls=legalized.custom_calls)
        came_out(f"{compiled.memory.aliased / 1e6:.0f} MB of KV cache updated in place")
    with Bundle.create(directory) as writer:
        writer.add_entry("step", module.bytecode, module.signature, bindings=module.bindings)
        writer.add_target(
            "step", "cpu", module=legalized.bytecode, executable=compiled, custom_calls=legalized.custom_calls
        )


def _engine(folder: str, dtype: str) -> None:
    """vLLM's engine with the plugin: every program is compiled, or loaded, before it answers."""
    with console.stage("engine") as came_out:
        from vllm import LLM, SamplingParams

        options: dict[str, Any] = {"dtype": dtype, "max_model_len": 1024, "max_num_seqs": 8, "seed": 0}
        engine = LLM(model=folder, disable_log_stats=True, use_tqdm_on_load=False, **options)
        came_out("ready: all programs are there")
    with console.stage("first token") as came_out:
        engine.generate("Hello", SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
        came_out(f"{perf_counter() - STARTED:.1f} s after this command was started")
    chats: list[Any] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    start = perf_counter()
    outputs = engine.chat(chats, SamplingParams(temperature=0.0, max_tokens=48), use_tqdm=False)
    seconds = perf_counter() - start
    count = sum(len(output.outputs[0].token_ids) for output in outputs)
    console.say(f"answers: {count} tokens in {seconds:.2f} s\n")
    for question, output in zip(QUESTIONS, outputs, strict=True):
        print(f"> {question}\n{output.outputs[0].text.strip()}\n", flush=True)


@app.command()
def demo(dtype: str = typer.Option("bfloat16", help="bfloat16, float16 or float32")) -> None:
    """Takes SmolLM2-135M-Instruct from its PyPI package through every stage and lets vLLM's engine answer with it."""
    with console.stage("model") as came_out:
        folder = str(prepare(say=console.say))
        came_out(folder)
    _compiler(folder, dtype)
    _engine(folder, dtype)


if __name__ == "__main__":
    try:
        app()
    except FxhloError as problem:
        console.show_error(problem)
        raise SystemExit(1) from None
