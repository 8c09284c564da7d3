"""Errors of fxhlo: what happened, where, and what to do next.

Every error that fxhlo raises on purpose derives from `FxhloError`; the command line prints the same objects.
"""

from __future__ import annotations


class FxhloError(Exception):
    """What happened (`message`), where (`where`: file:line or a path) and what to do (`next_step`).

    `str()` puts each on its own line and omits those that are None.
    """

    def __init__(self, message: str, *, where: object = None, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = None if where is None else str(where)
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.message, self.where, self.next_step, self.__dict__)


def _rebuild(kind: type[FxhloError], message: str, where: str | None, next_step: str | None, state: dict) -> FxhloError:
    """Unpickles an error without calling its `__init__`: vLLM's workers send theirs pickled."""
    made = kind.__new__(kind, message)
    made.__dict__.update(state, message=message, where=where, next_step=next_step)
    return made


class UnsupportedError(FxhloError):
    """A request that fxhlo, or this installation of it, does not support."""


class TopologyError(UnsupportedError):
    """A target's topology that its compiler does not know."""


class SignatureError(FxhloError):
    """A signature that contradicts itself, or JSON that is not one."""


class ShapeError(FxhloError):
    """A call with the wrong arguments: count, name, shape, dtype, or a buffer that an earlier call consumed."""


class CompileError(FxhloError):
    """The compiler refused a module, or a serialized executable does not fit this process."""


class OutOfMemoryError(CompileError):
    """A program that needs more of a memory ("HBM", "VMEM") than the device has: `needed` of `available` bytes."""

    def __init__(self, what: str, memory: str, needed: int, available: int, *, where: object = None) -> None:
        over = needed - available
        super().__init__(
            f"{what}: it needs {_mib(needed)} of {memory}, and the device has {_mib(available)}, {_mib(over)} too little",
            where=where,
            next_step="take a smaller bucket or cache, or a target with more memory"
            if memory == "HBM"
            else "report this as a bug of fxhlo: a kernel must refuse what does not fit",
        )
        self.memory, self.needed, self.available = memory, needed, available


def _mib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"


class ExecutionError(FxhloError):
    """A compiled program failed while it ran."""


class BundleError(FxhloError):
    """A bundle that is missing, damaged, of another version, or cannot be written."""


class CacheError(FxhloError):
    """The cache folder cannot be used."""
