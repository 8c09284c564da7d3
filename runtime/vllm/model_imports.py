"""What stands in while a module of vLLM's models is imported, for what it imports at its top and a text model never calls.

A text model's module may import its multimodal sibling's, and that torchvision; a package may choose a GPU's variant of its layers.
Without a stand-in such a model could not even be looked at. Guaranteed: what is installed is used; a stand-in that is called says what
is missing; nothing is left in `sys.modules`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from ..core.errors import UnsupportedError

IMAGES = "torchvision"


@contextmanager
def without_images() -> Iterator[None]:
    """Stands in for torchvision where it is not installed."""
    if IMAGES in sys.modules or importlib.util.find_spec(IMAGES) is not None:
        yield
        return
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # keeps its answer, which is to be the true one
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module in which every name is a class that cannot be called."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Missing,), {"__module__": self.__name__})


class _Missing:
    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise UnsupportedError(
            f"{type(self).__module__}.{type(self).__qualname__} is called, and {IMAGES} is not installed",
            next_step=f"install the build of {IMAGES} that belongs to this torch",
        )


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == IMAGES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
