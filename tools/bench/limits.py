"""What the processor does at most: bytes a second from memory, operations a second by dtype. Measured by limits.cc, beside which figures stand.

Comes in: the C++ compiler of the native kernels, and an instruction set to keep to. Goes out: `Limits`, and the time that work takes at
least (`Limits.seconds`). Nothing is kept: a shared machine gives other figures at another time.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.core.native import build
from .engine import BenchError

SOURCE = Path(__file__).with_name("limits.cc")
SECONDS = 1.0
"""For each figure."""
AVX2 = "-march=x86-64-v3"
"""GCC's and clang's name of the instruction sets of AVX2 and fused multiply-add."""


@dataclass(frozen=True)
class Work:
    """What a step does at least. bytes: of memory that it reads once; flops: operations, two for a multiplication with its addition."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes a second, of all cores; flops: operations a second by dtype, of dtypes that the kernels multiply as they are."""

    bandwidth: float
    flops: Mapping[str, float]

    @classmethod
    def measure(cls, isa: str = "") -> Limits:
        """Measures this machine, with all cores that the process may use. isa: "avx2" leaves AVX-512 out."""
        compiler = build.find_compiler()
        if compiler is None:
            raise BenchError("no C++ compiler", next_step="install g++: the limits are measured by a program in C++")
        flags = ["-O3", "-std=c++17", "-march=native", *compiler[1:], *([AVX2] if isa == "avx2" else [])]
        with tempfile.TemporaryDirectory(prefix="fxhlo-limits-") as folder:
            program = str(Path(folder) / "limits")
            made = subprocess.run(
                [compiler[0], *flags, str(SOURCE), "-o", program, "-pthread"], capture_output=True, text=True
            )
            if made.returncode:
                raise BenchError(f"{shlex.join(compiler)} could not compile {SOURCE.name}: {made.stderr.strip()[:400]}")
            cores = str(len(os.sched_getaffinity(0)))
            said = subprocess.run([program, cores, str(SECONDS)], capture_output=True, text=True, check=True).stdout
        found = {name: float(value) for name, value in map(str.split, said.splitlines())}
        return cls(found.pop("bandwidth"), found)

    def of(self, dtype: str) -> float:
        """Operations a second of a dtype: those of float32 where the processor has no products of it."""
        return self.flops.get(dtype, self.flops["float32"])

    def seconds(self, work: Work, dtype: str) -> float:
        """The time that the work takes at least: it reads, and computes, at the same time."""
        return max(work.bytes / self.bandwidth, work.flops / self.of(dtype))

    def __str__(self) -> str:
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in self.flops.items())
        return f"memory {self.bandwidth / 1e9:.1f} GB/s, {rates}"
