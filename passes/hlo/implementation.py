"""Lowers implementations of kernels to StableHLO for one target: they are traced by jax, and no device is needed.

JAX makes an MLIR context for every module that it lowers, which takes longer than a small implementation itself. So those that a
module needs are lowered together (`prepare`), and kept for other modules of the process, such as those of other buckets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...kernels.spec import Implementation, Operands
from ...runtime.core.targets import KNOWN, Target

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Call:
    """One call of an implementation, with the kernel's operands and attributes."""

    implementation: Implementation
    operands: Operands
    attributes: Mapping[str, Any]
    target: Target

    @property
    def key(self) -> Hashable:
        """Equal for calls with the same text."""
        attributes = tuple(sorted(self.attributes.items()))
        return self.implementation, tuple(self.operands.named), tuple(self.operands), attributes, self.target

    @property
    def wide(self) -> bool:
        """Whether it needs JAX's 64-bit mode."""
        return any(spec.dtype.itemsize == 8 and spec.dtype.kind in "iuf" for spec in self.operands)

    @property
    def function(self) -> Callable[..., Any]:
        """Takes the operands in their order."""
        lower, names = self.implementation.bound(self.target), tuple(self.operands.named)

        def call(*arrays: jax.Array) -> Any:
            return lower(**dict(zip(names, arrays, strict=True)), **self.attributes)

        return call


def lower_implementation(
    implementation: Implementation, operands: Operands, attributes: Mapping[str, Any], target: Target
) -> str:
    """StableHLO text of a module whose `main` takes the operands in their order. Raises what the implementation raises."""
    call = Call(implementation, operands, attributes, target)
    return _PREPARED.get(call.key) or _RESULT_INFO.sub("", _text(call.function, call.operands, target, call.wide))


_RESULT_INFO = re.compile(r' \{jax\.result_info = "[^"]*"\}')
"""What JAX says of a result of the function that it lowers, and not of those that this one calls: the text is the same either way."""


PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}
"""What Pallas calls the platforms for which it asks what kind of device it lowers for."""
KEPT = 4096
_PREPARED: dict[Hashable, str] = {}


def prepare(calls: Iterable[Call]) -> None:
    """Lowers together the calls that were not prepared before. What cannot be lowered so is left to `lower_implementation`."""
    missing: dict[tuple[Target, bool], dict[Hashable, Call]] = {}
    for call in calls:
        if call.key not in _PREPARED:
            missing.setdefault((call.target, call.wide), {})[call.key] = call
    if len(_PREPARED) + sum(map(len, missing.values())) > KEPT:
        _PREPARED.clear()
    for group in missing.values():
        if len(group) > 1:
            _PREPARED.update(_together(list(group.values())))


def _together(calls: Sequence[Call]) -> dict[Hashable, str]:
    """The text of each call that is a function of its own in the module that calls all of them."""
    import jax

    names = [f"call_{number}_of_{len(calls)}" for number in range(len(calls))]
    functions = []
    for name, call in zip(names, calls, strict=True):
        function = call.function
        function.__name__ = name
        functions.append(jax.jit(function))

    def every(*arrays: jax.Array) -> Any:
        left = iter(arrays)
        return [function(*[next(left) for _ in call.operands]) for function, call in zip(functions, calls, strict=True)]

    try:
        text = _text(every, [spec for call in calls for spec in call.operands], calls[0].target, calls[0].wide)
    except Exception:  # lowered alone, the one at fault is named
        return {}
    found = _functions(text)
    parts = {
        call.key: _module(found.get(name, ""), len(call.operands)) for name, call in zip(names, calls, strict=True)
    }
    return {key: part for key, part in parts.items() if part is not None}


_FUNCTION = re.compile(r"^  func\.func (?:public|private) @([\w$.-]+)(\(.*?\n)  }\n", re.M | re.S)


def _functions(text: str) -> dict[str, str]:
    """The functions of a module as JAX prints it, by name, without their head and end; {} for one that has anything else."""
    inside = text.partition("{\n")[2].rpartition("}")[0]
    return dict(_FUNCTION.findall(inside)) if not _FUNCTION.sub("", inside).strip() else {}


def _module(function: str, operands: int) -> str | None:
    """A module with that function as `main`; None where it needs other functions, or JAX left out operands that it does not read."""
    head = function.partition("\n")[0].partition(") -> ")[0]
    if not function or "@call_" in function or re.search(r"\bcall @", function) or head.count("%arg") != operands:
        return None
    return f"module {{\n  func.func public @main{function}  }}\n}}\n"


def _text(function: Callable[..., Any], operands: Iterable[Any], target: Target, wide: bool) -> str:
    import jax

    from ...runtime.core.plugins import settle

    settle()  # lowering looks at jax's devices
    shapes = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in operands]
    with jax.enable_x64(wide), _device_of(target):
        traced = jax.jit(function, keep_unused=True).trace(*shapes)
        return traced.lower(lowering_platforms=(target.family,)).as_text()


def _device_of(target: Target) -> AbstractContextManager[object]:
    """The context that tells Pallas which device it lowers for: a mesh without axes whose device is of the target's kind."""
    if target.family not in PLATFORMS:
        return nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    kind = target.device_kind or KNOWN["cuda-h100"].device_kind
    device = AbstractDevice(device_kind=kind, num_cores=target.cores or None, platform=PLATFORMS[target.family])
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
