"""What vLLM would import and not use here is put off, from the earliest moment at which it can be.

Comes in: the end of torch's import, by torch's own hook for backends of other packages (`torch.backends`), before vLLM imports anything else.
Goes out: modules that are imported where somebody asks for them. Guaranteed: only where vLLM is being imported and fxhlo is going to serve; what
was put off behaves, once it is imported, as if it had been there.

- torch's compilers, torch._inductor and torch._dynamo, which no engine of ours calls. vLLM's `env_override` imports `torch._inductor.lowering` to
  widen a list in it, and goes on where it cannot be imported: the list is widened when it is. vLLM's config asks `torch._inductor.config`, which needs
  nothing else of its package. Functions that vLLM decorates with torch.compile (COMPILES) are compiled at their first call.
- What modules of transformers and vLLM import for some of their functions alone (DEFERRED, deferred.py).
- `scipy.signal`: vLLM's resampling of audio imports it, and all of scipy.stats with it. There it is a stand-in that imports it when it is used.

What transformers finds out at each import is kept (import_caches.py). Tried with torch 2.13, vLLM 0.32.0 and transformers 5.19; a module that imports other
things elsewhere is loaded as it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import patch

from . import import_caches
from .deferred import Deferring, Loader

COMPILER = "torch._inductor"
ALONE = (f"{COMPILER}.config", f"{COMPILER}.custom_graph_pass")
"""The modules of COMPILER that need nothing else of it."""
INDUCTOR = f"{COMPILER}.lowering"
OVERRIDE = "vllm.env_override"
WIDEN = "_patch_inductor_fallback_allow_list"
"""The function of OVERRIDE that imports INDUCTOR."""
SIGNAL = "scipy.signal"
AUDIO = "vllm.multimodal.audio"
DYNAMO = "torch._dynamo"
COMPILES = (
    "vllm.model_executor.layers.vocab_parallel_embedding", "vllm.utils.deep_gemm", "vllm.utils.gpu_sync_debug", "vllm.v1.sample.ops.logprobs",
)  # fmt: skip
"""Modules with functions that are decorated with torch.compile or torch.compiler.allow_in_graph, which import DYNAMO."""
DEFERRED: dict[str, tuple[str, ...]] = {
    "transformers.processing_utils": ("transformers.modeling_utils",),  # a class that audio tokenizers are compared with
    "transformers.models.auto.auto_factory": ("transformers.generation",),  # a base of remote models
    # how the weights of a kernel's layer are stored, and an attention that kernels may take the place of
    "transformers.integrations.hub_kernels": ("transformers.conversion_mapping", "transformers.integrations.flash_attention"),
    "vllm.tracing.otel": (
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.sdk.resources", "opentelemetry.sdk.trace", "opentelemetry.sdk.trace.export",
    ),
}  # fmt: skip
"""Modules, and what they import for some of their functions alone."""
BY_USE: dict[str, tuple[str, ...]] = {
    # a class whose method is replaced while a model is compiled
    "vllm.compilation.decorators": ("torch._dynamo.symbolic_convert",),
}
"""The same, of functions that run for every model: they use the names as objects."""


def put_off() -> None:
    """Puts all of it off that is not imported yet."""
    names = {COMPILER, DYNAMO, AUDIO, import_caches.MODULE, *COMPILES, *DEFERRED, *BY_USE}.difference(sys.modules)
    if names:
        sys.meta_path.insert(0, _PutOff(names))


class _PutOff(importlib.abc.MetaPathFinder):
    """Finds the modules of `names` by the other finders, and wraps their loaders."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._looking: set[str] = set()
        if COMPILER in names:
            names.add(INDUCTOR)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(f"{COMPILER}.") and self._ran_compiler(fullname) and fullname in sys.modules:
            return ModuleSpec(fullname, _Imported())
        if (
            fullname not in self._names or fullname in self._looking or target is not None
        ):  # it is loaded again as it is
            return None
        self._looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.remove(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _loader(fullname, spec.loader)
        return spec

    def _ran_compiler(self, name: str) -> bool:
        """Has COMPILER run before a part of it is imported that needs it. Raises ImportError for what OVERRIDE asks for."""
        if name == INDUCTOR and INDUCTOR in self._names and _asks(OVERRIDE, WIDEN):
            raise ImportError(f"{INDUCTOR} is imported when torch compiles something", name=INDUCTOR)
        package = sys.modules.get(COMPILER)
        if name in ALONE or not isinstance(package, _Waiting):
            return False
        package.run()
        return True


class _Imported(importlib.abc.Loader):
    """Loads a module that was imported while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        found = sys.modules[spec.name]
        self._spec = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _loader(name: str, loader: importlib.abc.Loader) -> importlib.abc.Loader:
    if name in DEFERRED:
        return Deferring(loader, DEFERRED[name])
    if name in BY_USE:
        return Deferring(loader, BY_USE[name], by_use=True)
    if name in COMPILES:
        return _CompilingLater(loader)
    others = {
        COMPILER: _LoadingLater, DYNAMO: _Telling, INDUCTOR: _Widening, AUDIO: _WithoutSignal, import_caches.MODULE: _WithCaches
    }  # fmt: skip
    return others[name](loader)


def _asks(module: str, function: str) -> bool:
    """Whether it is this function that imports something now: the first on the stack that is not Python's own import."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in (
        __name__,
        "importlib._bootstrap",
        "importlib",
        "importlib.util",
    ):
        frame = frame.f_back  # type: ignore[assignment]  # None above the last
    return frame is not None and frame.f_code.co_name == function and frame.f_globals.get("__name__") == module


class _Waiting(ModuleType):
    """A package that runs when something of it is asked for, other than the parts that need nothing of it."""

    def __getattr__(self, name: str) -> Any:
        if f"{self.__name__}.{name}" in ALONE:
            return importlib.import_module(f"{self.__name__}.{name}")
        if name.startswith("__") or _asks(OVERRIDE, WIDEN):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.run()
        return getattr(self, name)

    def run(self) -> None:
        """Runs the package's own code, once."""
        with _running:
            if isinstance(self, _Waiting):
                loader = vars(self).pop(LOADER)
                self.__class__ = ModuleType  # type: ignore[assignment]
                loader.exec_module(self)


LOADER = "fxhlo_loader"
_running = threading.RLock()


class _LoadingLater(Loader):
    """Loads COMPILER when something of it is asked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _Waiting(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[LOADER] = self._loader


class _Widening(Loader):
    """Loads INDUCTOR, and has OVERRIDE widen its list."""

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        widen = getattr(sys.modules.get(OVERRIDE), WIDEN, None)
        if widen is not None:
            widen()


class _CompilingLater(Loader):
    """Loads a module whose functions torch.compile compiles at their first call, and knows as it is told to once torch._dynamo is there."""

    def exec_module(self, module: ModuleType) -> None:
        import torch

        compile_now, allow_now = torch.compile, torch.compiler.allow_in_graph

        def compile_later(model: Any = None, **options: Any) -> Any:
            if sys._getframe(1).f_globals is not vars(module):
                return compile_now(model, **options)
            later = functools.partial(_compiled_later, compile_now, options)
            return later if model is None else later(model)

        def allow_later(function: Any) -> Any:
            if sys._getframe(1).f_globals is not vars(module) or DYNAMO in sys.modules:
                return allow_now(function)
            _allowed.append(function)
            return function

        with patch.object(torch, "compile", compile_later), patch.object(torch.compiler, "allow_in_graph", allow_later):
            self._loader.exec_module(module)


_allowed: list[Any] = []
"""What torch._dynamo is told of when it is imported."""


class _Telling(Loader):
    """Loads DYNAMO, and tells it of what it would have been told."""

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        while _allowed:
            module.allow_in_graph(_allowed.pop())


def _compiled_later(
    compile_now: Callable[..., Any], options: dict[str, Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    """`torch.compile(function, **options)`, made at its first call."""
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(compile_now(function, **options))
        return made[0](*args, **kwargs)

    return compiled


class _WithCaches(Loader):
    """Loads transformers' look at itself and at what is installed, with what is kept of it."""

    def exec_module(self, module: ModuleType) -> None:
        with import_caches.while_imported():
            self._loader.exec_module(module)
        import_caches.use_in(module)


class _WithoutSignal(Loader):
    """Loads AUDIO, with a stand-in for SIGNAL where that is installed and not imported."""

    def exec_module(self, module: ModuleType) -> None:
        stands_in = SIGNAL not in sys.modules and importlib.util.find_spec("scipy") is not None
        if stands_in:
            sys.modules[SIGNAL] = _StandIn(SIGNAL)
            sys.modules[SIGNAL].__file__ = None  # `inspect.getmodule` asks every module for it
        try:
            self._loader.exec_module(module)
        finally:
            if stands_in and isinstance(sys.modules.get(SIGNAL), _StandIn):
                del sys.modules[SIGNAL]


class _StandIn(ModuleType):
    """A module that imports the one of its name when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
