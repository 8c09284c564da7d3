"""Times the stages of an engine's start, in the engine's own processes: `startup` copies this file there as `sitecustomize.py`.

Comes in: nothing; Python runs it before anything else. Goes out: a file of spans for each process in FOLDER, a JSON object a line, as they end. It
imports nothing beyond what Python's start and its own few lines need. Modules of MODULES are timed while they are imported, functions of FUNCTIONS
while they are called, and garbage collections; a span's time includes that of spans within it.
"""

import functools
import gc
import importlib.abc
import importlib.util
import json
import os
import sys
import threading
import time
import typing

FOLDER = ""
"""Where the spans go; the copy has the folder's name."""
WAITS = "waits for the engine"
MODULES = (
    "torch", "torch._inductor", "torch._inductor.lowering", "vllm", "vllm.config", "vllm.config.model", "vllm.config.quantization", "transformers",
    "transformers.modeling_utils",
    "jax", "openai", "scipy.signal", "vllm.engine.arg_utils", "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.engine.core",
    "fxhlo.runtime.vllm.platform", "fxhlo.runtime.vllm.compat", "fxhlo.runtime.vllm.worker", "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama", "fxhlo.lowering.emit.emit", "fxhlo.runtime.vllm.steps.capture", "vllm.model_executor.layers.quantization.online.base",
)  # fmt: skip
WORKER = {
    "init_device": "device", "load_model": "weights", "determine_available_memory": "memory",
    "initialize_from_config": "memory", "compile_or_warm_up_model": "warm-up",
}  # fmt: skip
FUNCTIONS = {
    "vllm.engine.arg_utils": {"EngineArgs.create_engine_config": "config"},
    "vllm.renderers.registry": {"renderer_from_config": "tokenizer and templates"},
    "vllm.v1.engine.core_client": {"EngineCoreClient.make_client": WAITS},
    "vllm.v1.engine.core": {"EngineCore.__init__": "engine core"},
    "vllm.v1.worker.cpu_worker": {f"CPUWorker.{name}": stage for name, stage in WORKER.items()},
    "fxhlo.runtime.vllm.worker": {f"FxhloWorker.{name}": stage for name, stage in WORKER.items()},
    "fxhlo.runtime.vllm.steps.capture": {"capture_step": "capture"},
    "fxhlo.passes.pipeline": {"run": "passes"},
    "fxhlo.lowering.emit.emit": {"emit": "emission"},
    "fxhlo.runtime.core.pjrt": {"Device._compile": "compile", "Device.deserialize": "load programs"},
    "fxhlo.runtime.vllm.steps.programs": {"Programs.load": "load programs"},
    "fxhlo.runtime.vllm.placement": {"Placement.weights": "place weights", "Placement.states": "KV caches"},
    "fxhlo.runtime.vllm.steps.planning.engine": {"closed_set": "plan and proof"},
}  # fmt: skip

_held = threading.local()
_main = threading.main_thread().ident
_file: typing.TextIO


def _begun() -> float:
    """When this process began, on the clock of time.perf_counter."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.perf_counter() - (now - ticks / os.sysconf("SC_CLK_TCK"))


def _write(facts: dict) -> None:
    _file.write(json.dumps(facts) + "\n")
    _file.flush()


def _open(began: float) -> None:
    global _file
    _file = open(f"{FOLDER}/{os.getpid()}.spans", "a")
    _write({"process": os.getpid(), "parent": os.getppid(), "began": began})


def _begin(name: str) -> None:
    if not hasattr(_held, "stack"):
        _held.stack = []
    _held.stack.append([name, time.perf_counter(), 0.0])


def _end() -> None:
    """Ends the innermost span: `own` is its time without that of the spans within it."""
    name, begin, within = _held.stack.pop()
    took = time.perf_counter() - begin
    if _held.stack:
        _held.stack[-1][2] += took
    aside = threading.get_ident() != _main
    _write(
        {"name": name, "begin": begin, "own": took - within, "aside": aside, "inside": [one[0] for one in _held.stack]}
    )


def _collected(phase: str, _: dict) -> None:
    _begin("garbage collection") if phase == "start" else _end()


def _timed(function, name: str):
    @functools.wraps(function)
    def call(*arguments, **options):
        _begin(name)
        try:
            return function(*arguments, **options)
        finally:
            _end()

    return call


class _Loader(importlib.abc.Loader):
    def __init__(self, loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        name = module.__spec__.name
        if name in MODULES:
            _begin(f"import {name}")
        try:
            self._loader.exec_module(module)
        finally:
            if name in MODULES:
                _end()
        for path, stage in FUNCTIONS.get(name, {}).items():
            owner = module
            *classes, last = path.split(".")
            for one in classes:
                owner = getattr(owner, one)
            held = vars(owner).get(last)
            if isinstance(held, (staticmethod, classmethod)):
                setattr(owner, last, type(held)(_timed(held.__func__, stage)))
            elif held is not None:
                setattr(owner, last, _timed(held, stage))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are timed by the other finders, and wraps their loaders."""

    def find_spec(self, name: str, path=None, target=None):
        if name not in MODULES and name not in FUNCTIONS:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


def _forked() -> None:
    global _main
    _held.stack = []
    _main = threading.get_ident()
    _open(time.perf_counter())


if FOLDER:
    _open(_begun())
    _begin("Python")
    _end()
    os.register_at_fork(after_in_child=_forked)
    gc.callbacks.append(_collected)
    sys.meta_path.insert(0, _Finder())
