"""Devices that programs are compiled for without one: of a TPU's topology as libtpu knows them, and a card as jax's CUDA plugin does.

Comes in: a target. Goes out: its devices, the same ones each time. Guaranteed: no device is asked for; libtpu stays quiet.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax

from .errors import TopologyError, UnsupportedError
from .explain import first_lines
from .plugins import has_cuda_plugin, has_gpu, has_tpu, settle
from .targets import Options, Target

HOST = (2, 2, 1)
"""Chips of one host, along the axes of a topology."""

OPTIONS: dict[str, Options] = {"cuda": {"xla_gpu_autotune_level": 0}}
"""XLA's options by family for what is compiled without a device: nothing can be tried out there."""

_lock = threading.Lock()


def is_described(target: Target) -> bool:
    """Whether the target's devices are known well enough to compile for them without one."""
    return target.topology_name is not None or target.gpu is not None


def devices(target: Target) -> Sequence[Any]:
    """The target's devices as its compiler knows them. Raises UnsupportedError for targets that are compiled where they are, and without
    the compiler, TopologyError for a topology that it does not know."""
    if not is_described(target):
        card = "name a card, as cuda-h100, or " if target.family == "cuda" else ""
        raise UnsupportedError(
            f"{target} is compiled on a machine that has one, not ahead of time", next_step=f"{card}use compile"
        )
    with _lock:  # devices of two topologies of one name do not mix
        return _card(target) if target.topology_name is None else _made(target.topology_name, target.family)


def check_compiler(target: Target) -> None:
    """Raises UnsupportedError where the compiler for a target of NVIDIA's is not installed; starts nothing."""
    if target.family == "cuda" and not has_cuda_plugin():
        raise UnsupportedError(
            "jax's CUDA plugin is not installed, and it alone compiles for GPUs; it needs no GPU for that",
            next_step=f"pip install 'jax-cuda13-plugin=={jax.__version__}'",
        )


@cache
def _card(target: Target) -> Sequence[Any]:
    settle()
    check_compiler(target)
    if not has_gpu():  # else the plugin looks for CUDA's libraries, none of which a compiler needs
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    try:
        made = topologies.get_topology_desc(
            platform="cuda", topology_name=target.name, topology="1x1x1", target_config=description(target)
        )
    except Exception as problem:
        raise UnsupportedError(f"jax's CUDA plugin knows no {target}: {first_lines(problem)}") from problem
    return made.devices


def description(target: Target) -> str:
    """The card as XLA's GpuTargetConfigProto, in text form."""
    gpu = target.gpu
    assert gpu is not None
    major, minor = gpu.capability
    numbers = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048, "core_count": gpu.multiprocessors,
        "fpus_per_core": gpu.units, "shared_memory_per_block": 48 * 1024, "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared - 1024, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "memory_bandwidth": int(target.bandwidth or 0),
        "device_memory_size": gpu.memory, "l2_cache_size": gpu.cache, "clock_rate_ghz": gpu.clock,
    }  # fmt: skip
    lines = "".join(f"  {name}: {number}\n" for name, number in numbers.items())
    capability = f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n"
    return (
        f"gpu_device_info {{\n{lines}{capability}}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 10 }}\ndevice_description_str: "{target.device_kind}"\n'
    )


@cache
def _made(name: str, platform: str) -> Sequence[Any]:
    settle()
    if not has_tpu():  # what libtpu would ask a TPU host's metadata server, and its guard against two users of one TPU
        quiet = {
            "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v6e-4", "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
        }  # fmt: skip
        for key, value in quiet.items():
            os.environ.setdefault(key, value)
    if not os.environ.get("TPU_LIBRARY_PATH") and importlib.util.find_spec("libtpu") is None:
        raise UnsupportedError(
            "libtpu is not installed, and it alone compiles for TPUs", next_step="pip install 'libtpu==0.0.42.*'"
        )
    from jax.experimental import topologies

    sizes = [int(size) for size in name.partition(":")[2].split("x")]
    bounds = [min(size, most) for size, most in zip([*sizes, 1][:3], HOST, strict=True)]
    try:
        return topologies.get_topology_desc(platform=platform, topology_name=name, chips_per_host_bounds=bounds).devices
    except Exception as problem:
        raise TopologyError(
            f"libtpu gives no topology {name}: {first_lines(problem)}",
            next_step="take sizes that are even, or 1, as in 2x2 or 4x4; three of them for v4, v5p and 7x",
        ) from problem
