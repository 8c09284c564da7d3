"""The devices that this process has: none of a plugin that nobody asked for is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jaxlib
import numpy as np

from .. import processes
from ..errors import UnsupportedError
from ..explain import first_lines
from ..mesh import ONE_DEVICE, Mesh
from ..plugins import has_cuda_plugin, limited, reserve_cpu_devices, settle
from ..targets import Target
from .client import Buffer
from .devices import Device


def device(target: Target | str = "cpu", index: int = 0, mesh: Mesh = ONE_DEVICE) -> Device:
    """The device `index` of a target, or as many from there on as the mesh has. Raises UnsupportedError where this process has fewer.

    Where processes of several hosts were joined (processes.py), a mesh has equally many devices of each.
    """
    return _device(Target.parse(target), index + mesh.first, mesh if mesh.devices > 1 else ONE_DEVICE)


@cache
def _device(target: Target, index: int, mesh: Mesh) -> Device:
    if target.family == "cpu":
        reserve_cpu_devices(index + mesh.devices // processes.count())
    if target.family == "cpu" and not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")  # else the first look at a device starts every plugin there is
    if target.family == "cuda" and not has_cuda_plugin():
        raise UnsupportedError(
            f"jaxlib {jaxlib.__version__} has no CUDA plugin here, so nothing is compiled for {target} or runs on it",
            next_step="pip install 'jax[cuda12]' on a machine with a GPU, or take another target",
        )
    settle()
    try:
        found = jax.local_devices(backend=target.family)
        raw = found[index]
    except (RuntimeError, AssertionError) as problem:  # jax asserts where JAX_PLATFORMS names only what is not there
        named = os.environ.get("JAX_PLATFORMS")
        hidden = f"let JAX_PLATFORMS (it is {named!r}) name {target.family}, or " if named else ""
        ahead = "; a TPU's programs are compiled without one by lower-model --target" if target.family == "tpu" else ""
        raise UnsupportedError(
            f"this process has no {target.family} device: {first_lines(problem)}",
            next_step=f"{hidden}take a target that is here{ahead}",
        ) from problem
    except IndexError:
        raise UnsupportedError(f"there is no {target.family} device {index}: there are {len(found)}") from None
    if target.device_kind not in ("", raw.device_kind):
        raise UnsupportedError(
            f"the device here is a {raw.device_kind}, and {target} is a {target.device_kind}",
            next_step="take the target that is here, or compile_ahead",
        )
    raws = _of_hosts(target, mesh) if processes.count() > 1 < mesh.devices else found[index : index + mesh.devices]
    if len(raws) < mesh.devices:
        hosts, (why, more) = processes.count(), limited(target.family)
        whose = f"{hosts} hosts share it equally, and this one has" if hosts > 1 else "this process has"
        raise UnsupportedError(
            f"a mesh of {mesh.devices} devices ({mesh}) does not fit: {whose} {len(found)} of {target.family}{why}",
            next_step=f"take a smaller mesh{more}",
        )
    return Device(target, raws, mesh)


def _of_hosts(target: Target, mesh: Mesh) -> list[Any]:
    """Equally many devices of each host, host by host; fewer than the mesh has where some host has too few."""
    each, left = divmod(mesh.devices, processes.count())
    everywhere = sorted(jax.devices(target.family), key=lambda raw: (raw.process_index, raw.id))
    by_host = [[raw for raw in everywhere if raw.process_index == host] for host in range(processes.count())]
    return [] if left else [raw for raws in by_host for raw in raws[:each]]


def device_count(target: Target | str = "cpu") -> int:
    """Devices of the target that this process may use. Raises UnsupportedError where it has none."""
    return len(jax.local_devices(backend=device(target).target.family))


def is_here(target: Target | str) -> bool:
    """Whether this process can run programs of `target`."""
    try:
        device(target)
    except UnsupportedError:
        return False
    return True


def put(array: np.ndarray, target: Target | str = "cpu") -> Buffer:
    """`Device.put` on the first device of a target."""
    return device(target).put(array)


def put_shared(array: np.ndarray, target: Target | str = "cpu") -> Buffer:
    """`Device.put_shared` on the first device of a target."""
    return device(target).put_shared(array)


def zeros(shape: Sequence[int], dtype: np.dtype | str, target: Target | str = "cpu") -> Buffer:
    """`Device.zeros` on the first device of a target."""
    return device(target).zeros(shape, dtype)
