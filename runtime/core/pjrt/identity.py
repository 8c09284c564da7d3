"""What must be equal where a serialized executable is loaded, and what a bundle says of its writer."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from functools import cache
from pathlib import Path

import jaxlib

from .. import topology
from ..targets import Target
from .found import device, is_here


def versions() -> dict[str, str]:
    """Versions that a bundle records about its writer."""
    from .. import stablehlo

    return {"jaxlib": jaxlib.__version__, "stablehlo": stablehlo.version()}


def fingerprint(target: Target | str = "cpu") -> dict[str, str]:
    """What must be equal for a serialized executable to be loaded: versions, compile options, and the kind of machine."""
    target = Target.parse(target)
    ahead = topology.is_described(target) and not is_here(target)
    raw = topology.devices(target)[0] if ahead else device(target).raw
    platform_version = f"{raw.client.platform} {raw.client.platform_version}"
    given = {**target.compile_options, **(topology.OPTIONS.get(target.family, {}) if ahead else {})}
    options = " ".join(f"{name}={value}" for name, value in sorted(given.items()))
    found = {"jaxlib": jaxlib.__version__, "platform": platform_version, "options": options}
    if target.family == "cpu":
        return found | {"machine": platform.machine(), "features": _cpu_features()}
    return found | {"device": raw.device_kind}


@cache
def _cpu_features() -> str:
    """A digest of the instruction sets that the kernel lists."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.split(":")[0].strip() in ("flags", "Features"):
                return hashlib.sha256(" ".join(sorted(line.split(":")[1].split())).encode()).hexdigest()[:16]
    return platform.processor()
