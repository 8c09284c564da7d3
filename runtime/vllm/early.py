"""What vLLM would import and not use here is put off, from the earliest moment at which it can be.

Comes in: the end of torch's import, by torch's own hook for backends of other packages (`torch.backends`), before vLLM imports anything else.
Goes out: two modules that are imported where somebody asks for them. Guaranteed: only where vLLM is being imported and fxhlo is going to serve; what
was put off behaves, once it is imported, as if it had been there.

- `torch._inductor.lowering`: vLLM's `env_override` imports it to widen a list in it, for torch.compile, which no engine of ours calls, and goes on
  where it cannot be imported. The list is widened when it is.
- `scipy.signal`: vLLM's resampling of audio imports it, and all of scipy.stats with it. There it is a stand-in that imports it when it is used.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

INDUCTOR = "torch._inductor.lowering"
OVERRIDE = "vllm.env_override"
WIDEN = "_patch_inductor_fallback_allow_list"
"""The function of OVERRIDE that imports INDUCTOR."""
SIGNAL = "scipy.signal"
AUDIO = "vllm.multimodal.audio"


def put_off() -> None:
    """Puts both modules off, where they are not imported yet."""
    absent = {INDUCTOR, AUDIO}.difference(sys.modules)
    if absent:
        sys.meta_path.insert(0, _PutOff(absent))


class _PutOff(importlib.abc.MetaPathFinder):
    """Finds the modules of `names` by the other finders, and wraps their loaders; INDUCTOR not for OVERRIDE while that is imported."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        if fullname == INDUCTOR and _is_being_imported(OVERRIDE):
            raise ImportError(f"{INDUCTOR} is imported when torch compiles something", name=INDUCTOR)
        self._names.remove(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = (_Widening if fullname == INDUCTOR else _WithoutSignal)(spec.loader)
        return spec


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


class _Loader(importlib.abc.Loader):
    """Another loader, with something of its own about it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)


class _Widening(_Loader):
    """Loads INDUCTOR, and has OVERRIDE widen its list."""

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        widen = getattr(sys.modules.get(OVERRIDE), WIDEN, None)
        if widen is not None:
            widen()


class _WithoutSignal(_Loader):
    """Loads AUDIO, with a stand-in for SIGNAL where that is installed and not imported."""

    def exec_module(self, module: ModuleType) -> None:
        stands_in = SIGNAL not in sys.modules and importlib.util.find_spec("scipy") is not None
        if stands_in:
            sys.modules[SIGNAL] = _StandIn(SIGNAL)
        try:
            self._loader.exec_module(module)
        finally:
            if stands_in and isinstance(sys.modules.get(SIGNAL), _StandIn):
                del sys.modules[SIGNAL]


class _StandIn(ModuleType):
    """A module that imports the one of its name when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
