"""Which target an engine's programs run on: the one place that decides.

Comes in: what was asked for, the environment, what this machine has. Goes out: a `Selection`, with its reason. Guaranteed: no PJRT
client and no plugin is started; what was asked for is never replaced by something else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UnsupportedError
from .plugins import allowed, gpu_model, has_cuda_plugin, has_gpu, tpu_chips
from .targets import KNOWN, Target

VARIABLE = "FXHLO_TARGET"


@dataclass(frozen=True)
class Selection:
    """A target, and why it was taken: "FXHLO_TARGET names it", "this machine has 4 TPU chips"."""

    target: Target
    reason: str

    def __str__(self) -> str:
        return f"{self.target} ({self.reason})"


def select(asked: str | None = None) -> Selection:
    """The target that was `asked` for, else that of $FXHLO_TARGET, else what is found: TPU chips, a GPU with jaxlib's CUDA plugin, the CPU.

    What is found counts only where JAX_PLATFORMS, if it is set, names its platform. Raises UnsupportedError for a name that is no
    target's, and for a machine of which none is left.
    """
    if asked is not None:
        return Selection(Target.parse(asked), "the engine's config names it")
    if named := os.environ.get("FXHLO_TARGET"):
        try:
            return Selection(Target.parse(named), f"{VARIABLE} names it")
        except UnsupportedError as problem:
            raise UnsupportedError(f"{VARIABLE}: {problem.message}", next_step=problem.next_step) from None
    return _found()


def _found() -> Selection:
    reasons: list[str] = []
    for family, look in LOOKS:
        target, reason = look()
        if target is not None and allowed(family):
            return Selection(target, "; ".join([*reasons, reason]))
        reasons.append(reason if target is None else f"{reason}, and JAX_PLATFORMS leaves out {family}")
    raise UnsupportedError(
        f"there is no device to run on: {'; '.join(reasons)}",
        next_step=f'name a target: --additional-config \'{{"fxhlo": {{"target": "..."}}}}\' or {VARIABLE}',
    )


def _tpu() -> tuple[Target | None, str]:
    count, generation = tpu_chips()
    if not count:
        return None, "no TPU chips"
    chips = f"{count} TPU chip{'s' if count > 1 else ''} of {generation}"
    name = next((name for name, known in KNOWN.items() if known.compiler_name == generation), None)
    if name is None:
        return None, f"{chips}, which fxhlo has no target for"
    return Target(name), f"this machine has {chips}"


def _cuda() -> tuple[Target | None, str]:
    if not has_gpu():
        return None, "no GPU of NVIDIA's"
    if not has_cuda_plugin():
        return None, "a GPU of NVIDIA's without jaxlib's CUDA plugin"
    return card(), f"this machine has {gpu_model() or 'a GPU'} and jaxlib's CUDA plugin"


def card() -> Target:
    """The target of this machine's GPU, by what its driver calls it; "cuda" for one that is not known."""
    model = gpu_model()
    known = (name for name, one in KNOWN.items() if one.gpu is not None and one.device_kind == model)
    return Target(next(known, "cuda"))


def _cpu() -> tuple[Target | None, str]:
    return Target("cpu"), "the CPU is left"


LOOKS: tuple[tuple[str, Callable[[], tuple[Target | None, str]]], ...] = (("tpu", _tpu), ("cuda", _cuda), ("cpu", _cpu))
"""(family, how to look for it without starting it), in order of preference."""
