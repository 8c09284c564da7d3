"""All kernels, by name, and their registration as `torch.ops.fxhlo.<name>`.

Each kernel stands in a folder of its own with `KERNEL` in its `__init__`; adding one is adding its module here.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from .spec import Kernel

MODULES = ("attention", "linear", "logprobs", "paged_attention", "process_logits", "sample", "select_rows")


@cache
def kernels() -> dict[str, Kernel]:
    """Every kernel by its composite name, such as "fxhlo.sample"."""
    found = [import_module(f"{__package__}.{module}").KERNEL for module in MODULES]
    return {f"fxhlo.{kernel.name}": kernel for kernel in found}


@cache
def register_torch_ops() -> object:
    """Defines `torch.ops.fxhlo.*` once in this process: eager reference and fake implementation.

    Returns the torch.library.Library, which must live as long as the ops are used.
    """
    import torch

    library = torch.library.Library("fxhlo", "DEF")
    for kernel in kernels().values():
        library.define(kernel.schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(kernel.name, kernel.reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fxhlo::{kernel.name}", kernel.fake, lib=library)
    return library
