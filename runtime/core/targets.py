"""Targets: where a module runs, with the memory and the peak rates that are known of it.

Comes in: a name such as "cpu" or "tpu-v6e:2x2". Goes out: a frozen, hashable `Target`.
Guaranteed: a Target that exists is a known one; anything else raises UnsupportedError with the near misses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from types import MappingProxyType

from .errors import UnsupportedError

Family = str
"""Which kernels a target takes, and the name of its platform in PJRT: "cpu", "tpu", "cuda", or a plugin's own."""
MIB, GIB = 2**20, 2**30


Options = Mapping[str, bool | int | float | str]
"""XLA's flags by name (`xla_cpu_enable_fast_math`), or fields of its build options (`optimization_level`)."""

FAMILY_OPTIONS: Mapping[Family, Options] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_cpu_enable_fast_math": False,
        "xla_cpu_enable_fast_min_max": False,
    }
}
"""XLA's options for every module compiled for a family, whatever XLA_FLAGS says. XLA's YNN fusion (tried with jaxlib 0.10.2) loses NaN
in max and min from 4,096 elements on, gives wrong columns for products of more than 32,768 rows, crashes on some sums, and
reassociates sums above a row threshold, so that a request's bits would depend on its batch. Fast math assumes that there are no NaN
and infinities; fast min and max drop NaN."""

LANES = 128
"""Columns of a TPU's vector registers: the last dimension of a tile."""
SUBLANES = 8
"""Rows of them, of 32 bits each."""


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler for CUDA asks of a card. memory: bytes of it. capability: (9, 0) for Hopper. shared: bytes of shared memory of a
    multiprocessor, of which a program gets a KiB less. cache: bytes of the second level. clock: GHz. units: of float32 in a multiprocessor."""

    memory: int
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    cache: int
    clock: float
    units: int


@dataclass(frozen=True)
class Specification:
    """What is known of one kind of device; None, 0 and an empty mapping where nothing is.

    memory: bytes a program may use per device, as the compiler counts them. bandwidth: bytes a second.
    flops: operations a second by dtype name. compiler_name: libtpu's name of it, with which topologies are asked for.
    dimensions: of a topology; `topology`: the one compiled for where none is named. generation: 5 for v5e and v5p.
    device_kind, cores: as PJRT reports a device and its TensorCores. vmem, smem: bytes per core. mxu: rows and
    columns of a matrix unit. compile_options: XLA's options for everything compiled for it, beside those
    of its family. link: bytes a second that a device sends to others of its slice, over all its links (ICI); network: to those of other
    slices, over the data center's network (DCN). gpu: of a known card.
    """

    family: Family
    memory: int | None = None
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    compiler_name: str | None = None
    dimensions: int = 0
    topology: str | None = None
    generation: int = 0
    device_kind: str = ""
    cores: int = 0
    vmem: int = 0
    smem: int = 0
    mxu: int = 0
    compile_options: Options = field(default_factory=dict)
    link: float | None = None
    network: float | None = None
    gpu: Gpu | None = None


CLIENT_SHARE = 0.75
"""Of a card's memory, what jax's client takes for programs where XLA_PYTHON_CLIENT_MEM_FRACTION does not say otherwise."""


def _cuda(kind: str, bandwidth: float, bfloat16: float, gpu: Gpu, **others: float) -> Specification:
    rates = {"bfloat16": bfloat16, "float16": bfloat16, **others}
    flops = {dtype: rate * 1e12 for dtype, rate in rates.items()}
    return Specification("cuda", int(gpu.memory * CLIENT_SHARE), bandwidth, flops, device_kind=kind, gpu=gpu)


def _tpu(
    name: str, topology: str, kind: str, generation: int, memory: float, bandwidth: float, vmem: int, mxu: int,
    bfloat16: float, link: float, network: float | None, cores: int = 1, **others: float,
) -> Specification:  # fmt: skip
    rates = {"bfloat16": bfloat16, **others}
    return Specification(
        "tpu", int(memory * GIB), bandwidth, {dtype: rate * 1e12 for dtype, rate in rates.items()}, name,
        topology.count("x") + 1, topology, generation, kind, cores, vmem * MIB, MIB, mxu, link=link,
        network=network,
    )  # fmt: skip


# Per device, which is half a chip of v4 and 7x. Memory, bandwidth and bfloat16 as libtpu's compiler counts them
# (tests/tpu asks it); narrower types by the ratios, VMEM and matrix units that jax's `pltpu.get_tpu_info` gives.
# Links (ICI), per chip in one direction, half of what Google's pages give for both: 400 GB/s of v5e, 1200 of v5p and 7x, 800 of v6e; six
# links of 50 GB/s of v4 (Jouppi et al., TPU v4, 2023, table 4). Networks (DCN), per chip: 50 Gbps of v5p, 100 of v6e and 7x, and of v5e the
# 6.4 Tbps of a pod of 256 chips; Google's page has none for v4. The pages, as of November 2026:
# https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x (which has the table of three generations).
# GPUs: memory, bandwidth and multiprocessors as XLA's own descriptions of the cards have them (xla/backends/gpu/target_config/specs), rates of dense
# products by NVIDIA's data sheets; float32 is XLA's default, TF32. "cuda" is any card, of which nothing is known.
_known: dict[str, Specification] = {
    "cpu": Specification("cpu"),
    "tpu-v4": _tpu("v4", "2x2x1", "TPU v4", 4, 15.25, 491e9, 16, 128, 137, 150e9, None),
    "tpu-v5e": _tpu("v5e", "2x2", "TPU v5 lite", 5, 15.75, 738e9, 128, 128, 197, 200e9, 3.125e9, int8=394, int4=788),
    "tpu-v5p": _tpu(
        "v5p", "2x2x1", "TPU v5", 5, 95.74, 2.35e12, 64, 128, 394, 600e9, 6.25e9, cores=2, int8=788, int4=1576
    ),
    "tpu-v6e": _tpu("v6e", "2x2", "TPU v6 lite", 6, 31.25, 1.64e12, 128, 256, 918, 400e9, 12.5e9, int8=1836, int4=3672),
    "tpu-7x": _tpu(
        "tpu7x", "2x2x1", "TPU7x", 7, 94.75, 3.69e12, 64, 256, 996, 300e9, 6.25e9, float8_e4m3fn=1992, float8_e5m2=1992
    ),
    "cuda": Specification("cuda"),
    "cuda-a100": _cuda(
        "NVIDIA A100-SXM4-80GB", 2.039e12, 312, Gpu(85_100_068_864, (8, 0), 108, 164 * 1024, 40 * MIB, 1.41, 64), float32=156, int8=624,
    ),
    "cuda-h100": _cuda(
        "NVIDIA H100 80GB HBM3", 3.352e12, 989, Gpu(84_942_979_072, (9, 0), 132, 228 * 1024, 50 * MIB, 1.98, 128), float32=495, int8=1979,
        float8_e4m3fn=1979, float8_e5m2=1979,
    ),
    "cuda-h200": _cuda(
        "NVIDIA H200", 4.8e12, 989, Gpu(151_397_597_184, (9, 0), 132, 228 * 1024, 50 * MIB, 1.98, 128), float32=495, int8=1979,
        float8_e4m3fn=1979, float8_e5m2=1979,
    ),
    "cuda-b200": _cuda(
        "NVIDIA B200", 7.672e12, 2250, Gpu(191_514_411_008, (10, 0), 148, 228 * 1024, 132_644_864, 1.965, 128), float32=1125, int8=4500,
        float8_e4m3fn=4500, float8_e5m2=4500,
    ),
}  # fmt: skip
KNOWN: Mapping[str, Specification] = MappingProxyType(_known)
ALSO_CALLED = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "h100": "cuda-h100",
    "h200": "cuda-h200",
    "a100": "cuda-a100",
    "b200": "cuda-b200",
    "tpu": "tpu-v6e",
    "trillium": "tpu-v6e",
    "v5litepod": "tpu-v5e",
    "ironwood": "tpu-7x",
}


def register(name: str, specification: Specification) -> None:
    """Adds a target for this process (docs/add_a_target.md). Raises UnsupportedError where the name is taken by another."""
    if _known.setdefault(name, specification) != specification:
        raise UnsupportedError(f"there is a target {name} already", next_step="take another name")


@dataclass(frozen=True)
class Target:
    """A place to run: its name, and the topology of its devices where one was named ("2x2"; TPU only)."""

    name: str
    topology: str | None = None

    def __post_init__(self) -> None:
        if self.name not in KNOWN:
            raise _unknown(self.name)
        if self.topology is None:
            return
        dimensions = KNOWN[self.name].dimensions
        if not dimensions:
            what = f"the target {self.name} has no topology, and {self.topology!r} was named"
            raise UnsupportedError(what, next_step=f"say {self.name}")
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{dimensions - 1}}}", self.topology):
            raise UnsupportedError(
                f"{self.topology!r} is no topology of {self.name}: it takes {dimensions} sizes",
                next_step=f"for instance {self.name}:{KNOWN[self.name].topology}",
            )

    @staticmethod
    def parse(text: str | Target) -> Target:
        """The target of a name such as "cpu" or "tpu-v6e:2x2". Raises UnsupportedError for any other text."""
        if isinstance(text, Target):
            return text
        name, colon, topology = text.partition(":")
        return Target(name, topology if colon else None)

    @property
    def family(self) -> Family:
        """Which PJRT platform and which kernels it takes: "cpu", "tpu", "cuda", or a plugin's own."""
        return KNOWN[self.name].family

    @property
    def memory(self) -> int | None:
        """Bytes a program may use on one device; None where it depends on the machine."""
        return KNOWN[self.name].memory

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second between one device and its memory; None where it depends on the machine."""
        return KNOWN[self.name].bandwidth

    @property
    def link(self) -> float | None:
        """Bytes a second that one device sends to others of its slice, over all links; None where it is not known."""
        return KNOWN[self.name].link

    @property
    def network(self) -> float | None:
        """Bytes a second that one device sends to those of other slices, over the data center's network; None where it is not known."""
        return KNOWN[self.name].network

    def flops(self, dtype: str) -> float | None:
        """Peak operations a second of one device in `dtype`; None where it is not known."""
        return KNOWN[self.name].flops.get(dtype)

    @property
    def topology_name(self) -> str | None:
        """What libtpu calls the topology to compile for ("v6e:2x2"); None for other families."""
        known = KNOWN[self.name]
        return known.compiler_name and f"{known.compiler_name}:{self.topology or known.topology}"

    @property
    def generation(self) -> int:
        """The TPU's generation, 5 for v5e and v5p; 0 for other families."""
        return KNOWN[self.name].generation

    @property
    def device_kind(self) -> str:
        """What PJRT calls a device ("TPU v6 lite"); empty for other families."""
        return KNOWN[self.name].device_kind

    @property
    def cores(self) -> int:
        """TensorCores of one device; 0 for other families."""
        return KNOWN[self.name].cores

    @property
    def vmem(self) -> int:
        """Bytes of vector memory per TensorCore: what a kernel's blocks, buffers included, must fit in."""
        return KNOWN[self.name].vmem

    @property
    def smem(self) -> int:
        """Bytes of scalar memory per TensorCore: where prefetched tables of integers lie."""
        return KNOWN[self.name].smem

    @property
    def mxu(self) -> int:
        """Rows and columns of a matrix unit; 0 for other families."""
        return KNOWN[self.name].mxu

    @property
    def gpu(self) -> Gpu | None:
        """What is known of a card; None for other families, and for "cuda", which is any."""
        return KNOWN[self.name].gpu

    @property
    def compile_options(self) -> Options:
        """XLA's options for every module compiled for it; a caller's own are added to them and win."""
        return {**FAMILY_OPTIONS.get(self.family, {}), **KNOWN[self.name].compile_options}

    def array_bytes(self, shape: Sequence[int], itemsize: int) -> int:
        """Bytes of a row-major array of at least two dimensions in a device's memory: a TPU's is padded to tiles."""
        return tiled_bytes(shape, itemsize) if self.family == "tpu" else prod(shape) * itemsize

    @staticmethod
    def tile(bits: int) -> tuple[int, int]:
        """(rows, columns) of a packed tile of a TPU for elements of so many bits: (8, 128) for 32, (16, 128) for 16."""
        return SUBLANES * max(1, 32 // bits), LANES

    def __str__(self) -> str:
        return f"{self.name}:{self.topology}" if self.topology else self.name


def tiled_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of a row-major array in a TPU's memory, which is padded to tiles of 8 rows by 128 lanes, or of fewer rows if it has fewer."""
    *outer, second, last = shape
    rows = SUBLANES if second >= SUBLANES else max(4 // itemsize, 1 << (second - 1).bit_length())
    return prod(outer) * -(-second // rows) * rows * -(-last // LANES) * LANES * itemsize


def _unknown(name: str) -> UnsupportedError:
    lowered = name.lower()
    near = [ALSO_CALLED[lowered]] if lowered in ALSO_CALLED else get_close_matches(lowered, KNOWN, 2, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    next_step = f"{hint}targets are {', '.join(KNOWN)}; TPUs take a topology, as tpu-v6e:2x2"
    return UnsupportedError(f"there is no target {name!r}", next_step=next_step)
