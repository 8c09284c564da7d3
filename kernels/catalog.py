"""All kernels, by name, and their registration as `torch.ops.fxhlo.<name>`.

Each kernel stands in a folder of its own with `KERNEL` in its `__init__`; adding one is adding its module here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from importlib import import_module
from threading import Lock
from typing import Any

from .spec import Implementation, Kernel

MODULES = (
    "attention",
    "filter_logits",
    "grouped_matmul",
    "linear",
    "logprobs",
    "paged_attention",
    "process_logits",
    "quantized_matmul",
    "random_bits",
    "rms_norm",
    "sample",
    "select_rows",
    "silu_and_mul",
)


@cache
def kernels() -> dict[str, Kernel]:
    """Every kernel by its composite name, such as "fxhlo.sample"."""
    found = [import_module(f"{__package__}.{module}").KERNEL for module in MODULES]
    return {f"fxhlo.{kernel.name}": kernel for kernel in found}


def implement(name: str, implementation: Implementation) -> None:
    """Adds a way to run the kernel `name` ("fxhlo.linear") for this process; it is tried before those that are there.

    For the author of a backend whose kernels are not in this tree (docs/add_a_target.md).
    """
    kernel = kernels()[name]
    kernels()[name] = replace(kernel, implementations=(implementation, *kernel.implementations))


_DEFINING = Lock()
"""torch takes each definition once: threads that ask for the ops at the same time wait for the first."""


def register_torch_ops() -> object:
    """Defines `torch.ops.fxhlo.*` once in this process: eager reference and fake implementation.

    Returns the torch.library.Library, which must live as long as the ops are used.
    """
    with _DEFINING:
        return _library()


@cache
def _library() -> object:
    import torch

    library = torch.library.Library("fxhlo", "DEF")
    for kernel in kernels().values():
        library.define(kernel.schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(kernel.name, _eager(kernel), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fxhlo::{kernel.name}", kernel.fake, lib=library)
    return library


def _eager(kernel: Kernel) -> Callable[..., Any]:
    """What the op does in eager torch: the check, and the reference with contiguous results, as `fake` promises."""

    @wraps(kernel.reference)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kernel.check is not None:
            kernel.check(*args, **kwargs)
        results = kernel.reference(*args, **kwargs)
        return tuple(result.contiguous() for result in results) if isinstance(results, tuple) else results.contiguous()

    return call
