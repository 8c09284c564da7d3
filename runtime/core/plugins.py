"""Which PJRT plugins jax may start in this process: only those whose devices this machine has.

Comes in: JAX_PLATFORMS and what is installed. Goes out: jax's own setting. Guaranteed: a choice that somebody has made stays.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache

from .versions import misfit

try:
    import jax
    from jax._src.hardware_utils import num_available_tpu_chips_and_device_id
    from jax._src.xla_bridge import backends_are_initialized
except (ImportError, AttributeError) as problem:
    raise misfit("PJRT client", problem) from problem


def settle() -> None:
    """Lets jax start only plugins whose devices this machine has, where nobody has chosen yet (JAX_PLATFORMS).

    To be called before anything that looks at jax's devices, as lowering a JAX function does. Without it an installed
    libtpu is started on machines without a TPU: noise, and a lock that one process holds.
    """
    if jax.config.jax_platforms or has_started() or others_are_installed():  # type: ignore[attr-defined]
        return
    here = [*(["tpu"] if has_tpu() else []), *(["cuda"] if has_cuda_plugin() else []), "cpu"]
    jax.config.update("jax_platforms", ",".join(here))


@cache
def others_are_installed() -> bool:
    """Whether a PJRT plugin of somebody else's is installed: which platform it serves is known once it has started."""
    found = importlib.metadata.entry_points(group="jax_plugins")
    return any("cuda" not in one.name and "tpu" not in one.name for one in found)


@cache
def has_tpu() -> bool:
    return num_available_tpu_chips_and_device_id()[0] > 0


@cache
def has_cuda_plugin() -> bool:
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13, 14))


def has_started() -> bool:
    """Whether anybody in this process has made a client: its threads run, and a fork would not have them."""
    return backends_are_initialized()
