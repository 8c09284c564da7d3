"""All kernels, by name, and their registration as `torch.ops.fxhlo.<name>`.

Each kernel is a folder whose `__init__` defines `KERNEL`; to add one, add its module to MODULES.
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
    "causal_conv1d",
    "copy_row",
    "filter_logits",
    "gated_delta_rule",
    "grouped_matmul",
    "latent_attention",
    "lightning_attention",
    "lightning_index",
    "linear",
    "logprobs",
    "moe",
    "paged_attention",
    "paged_latent_attention",
    "paged_lightning_index",
    "process_logits",
    "quantized_matmul",
    "ragged_causal_conv1d",
    "ragged_gated_delta_rule",
    "ragged_lightning_attention",
    "ragged_selective_scan",
    "ragged_ssd",
    "random_bits",
    "rms_norm",
    "sample",
    "select_rows",
    "selective_scan",
    "silu_and_mul",
    "ssd",
    "varlen_attention",
)


@cache
def kernels() -> dict[str, Kernel]:
    """All kernels by composite name, such as "fxhlo.sample"; imported at the first call."""
    found = [import_module(f"{__package__}.{module}").KERNEL for module in MODULES]
    return {f"fxhlo.{kernel.name}": kernel for kernel in found}


def implement(name: str, implementation: Implementation) -> None:
    """Registers another implementation of the kernel `name` ("fxhlo.linear") in this process, to be tried before the existing ones.

    For backends whose kernels are outside this repository (docs/add_a_target.md). Raises KeyError for an unknown name.
    """
    kernel = kernels()[name]
    kernels()[name] = replace(kernel, implementations=(implementation, *kernel.implementations))


_DEFINING = Lock()
"""torch rejects a second definition of an op: concurrent callers wait for the first."""


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
    """Eager implementation of the op: the check, then the reference, with contiguous results as in `fake`."""

    @wraps(kernel.reference)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kernel.check is not None:
            kernel.check(*args, **kwargs)
        results = kernel.reference(*args, **kwargs)
        return tuple(result.contiguous() for result in results) if isinstance(results, tuple) else results.contiguous()

    return call
