"""Which PJRT plugins jax may start in this process: only those whose devices this machine has.

Comes in: JAX_PLATFORMS and what is installed. Goes out: jax's own setting. Guaranteed: an explicit choice is kept.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

from .versions import misfit

try:
    import jax
    from jax._src.hardware_utils import has_visible_nvidia_gpu, num_available_tpu_chips_and_device_id
    from jax._src.xla_bridge import backends_are_initialized
except (ImportError, AttributeError) as problem:
    raise misfit("PJRT client", problem) from problem


COUNT = "xla_force_host_platform_device_count"
"""XLA's flag for the number of the CPU's devices."""


def settle() -> None:
    """Lets jax start only plugins whose devices this machine has, unless JAX_PLATFORMS or jax's configuration names platforms.

    Call it before anything that looks at jax's devices, as lowering a JAX function does. Without it an installed libtpu starts on
    machines without a TPU, prints warnings, and takes a lock that only one process can hold.
    """
    if jax.config.jax_platforms or has_started() or others_are_installed():  # type: ignore[attr-defined]
        return
    here = [*(["tpu"] if has_tpu() else []), *(["cuda"] if has_cuda_plugin() and has_gpu() else []), "cpu"]
    jax.config.update("jax_platforms", ",".join(here))


@cache
def others_are_installed() -> bool:
    """Whether a third party's PJRT plugin is installed: its platform is known only once it has started."""
    found = importlib.metadata.entry_points(group="jax_plugins")
    return any("cuda" not in one.name and "tpu" not in one.name for one in found)


def has_tpu() -> bool:
    return tpu_chips()[0] > 0


@cache
def tpu_chips() -> tuple[int, str]:
    """(TPU chips on this machine's PCI bus, their generation as libtpu names it, such as "v6e"); (0, "") without one."""
    count, generation = num_available_tpu_chips_and_device_id()
    return count, generation.name if generation is not None else ""


def has_gpu() -> bool:
    """Whether a GPU of NVIDIA's is visible, which a container may hide."""
    return has_visible_nvidia_gpu()


def gpu_model() -> str:
    """What NVIDIA's driver calls the GPUs, as PJRT does: "NVIDIA H100 80GB HBM3"; "" where it does not say, or where they differ."""
    models = set()
    for place in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        with contextlib.suppress(OSError):
            models |= {
                line.partition(":")[2].strip() for line in place.read_text().splitlines() if line.startswith("Model:")
            }
    return models.pop() if len(models) == 1 else ""


def allowed(family: str) -> bool:
    """Whether JAX_PLATFORMS, or jax's configuration, lets the platform of this family start. It names none by default, and allows all."""
    named = jax.config.jax_platforms  # type: ignore[attr-defined]
    platforms = set(named.split(",")) if named else set()
    return not platforms or family in platforms or (family == "cuda" and "gpu" in platforms)


@cache
def has_cuda_plugin() -> bool:
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13, 14))


def has_started() -> bool:
    """Whether this process has a PJRT client: its threads would be missing in a fork."""
    return backends_are_initialized()


def reserve_cpu_devices(count: int) -> None:
    """Lets the CPU's client, where it has not started, have `count` devices; a number in XLA_FLAGS is kept.

    The one place that decides it: the number is fixed when the client starts.
    """
    if has_started() or COUNT in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices >= count:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_num_cpu_devices", count)


def without_triton() -> str | None:
    """Why Pallas' kernels for CUDA cannot be lowered in this process, one clause; None where they can, which needs no GPU and no plugin.

    jax says that it will drop its lowering to Triton (0.11.2 and 0.12 warn); what was lowered before is compiled by XLA.
    """
    if importlib.util.find_spec("jax._src.pallas.triton") is None:
        return f"jax {jax.__version__} lowers no Pallas kernel to Triton"
    return None


def limited(family: str) -> tuple[str, str]:
    """Why this process has no more devices of a family, and how it gets more: the ends of a sentence each, empty where the machine has none."""
    if family != "cpu":
        return "", ""
    if COUNT in os.environ.get("XLA_FLAGS", ""):
        return f", as --{COUNT} in XLA_FLAGS says", ", or raise that number, or leave it out"
    return ", a number that was fixed when the first was used", ", or ask for this one first in a new process"
