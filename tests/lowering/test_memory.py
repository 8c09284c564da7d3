"""Lowering in a loop keeps memory flat: the MLIR context of a module is freed with the module."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

import fxhlo
from fxhlo.lowering.capture.exporting import capture
from fxhlo.lowering.lower import lower_program
from fxhlo.passes.contract import ContractError
from fxhlo.passes.mlir import ir
from fxhlo.runtime.core.targets import Target

MODULES = 50
FIRST = 10
"""Modules after which torch's and jax's own caches have what they keep."""
ALLOWED_MIB = 25
"""A context with its dialects takes about 1 MiB; what malloc keeps comes and goes."""


def contexts() -> int:
    gc.collect()
    return ir.Context._get_live_count()  # type: ignore[attr-defined]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Small(torch.nn.Module):
    """With the composite of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.fxhlo.linear(x.sin(), self.linear.weight, None)


def test_fifty_modules_leave_no_context_and_no_memory() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = capture(Small(), (torch.ones(4, 8),), dynamic_shapes=({0: batch},))
    target = Target.parse("cpu")
    before = contexts()
    for count in range(MODULES):
        module = lower_program(program, bindings={"batch": count + 2}, target=target)
        if count == FIRST:
            assert module.legalized().bytecode
            resident = resident_mib()
    assert contexts() == before + 1, "the last module's"
    del module
    assert contexts() == before
    assert resident_mib() - resident < ALLOWED_MIB


def test_a_refused_module_leaves_no_context() -> None:
    before = contexts()
    for _ in range(3):
        with pytest.raises(ContractError):
            fxhlo.lower(Refused(), (torch.ones(4),))
    assert contexts() == before


class Refused(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.complex32).abs() + torch.index_put(x, [x > 0], x)
