"""Turns the errors of the compiler and of PJRT into fxhlo's, by their text.

Comes in: an exception of jaxlib's. Goes out: an FxhloError with the informative lines, the sizes where memory ran out, and the
file to which the rejected module was written. Guaranteed: an FxhloError passes unchanged.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator

from .errors import CompileError, ExecutionError, FxhloError, OutOfMemoryError


@contextlib.contextmanager
def explained(what: str, kind: type[FxhloError] = ExecutionError, module: bytes | str | None = None) -> Iterator[None]:
    """Turns what PJRT raises into `kind`, with its first meaningful lines; keeps `module` where one is given."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as problem:
        text = first_lines(problem)
        where = None if module is None else _keep(module)
        if kind is CompileError and (short := _out_of_memory(str(problem))):
            raise OutOfMemoryError(what, *short, where=where) from problem
        next_step = None
        if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
            next_step = "take a smaller bucket or cache, or a target with more memory"
        elif "No FFI handler registered" in text or "custom call" in text.lower():
            next_step = "register the custom call first (fxhlo's own: pass custom_calls), or legalize for this target"
        elif "compile option" in text or "While setting option" in text:
            next_step = "correct the name or the value of the option"
        elif where is not None:
            next_step = "correct the module; where fxhlo made it, report a bug of fxhlo and add that file"
        raise kind(f"{what}: {text}", where=where, next_step=next_step) from problem


OUT_OF_MEMORY = (
    re.compile(r"memory on (?P<space>\w+), the total memory required [^(]*\((?P<needed>[\d.]+\w?)\) [^(]*\((?P<available>[\d.]+\w?)\)"),
    re.compile(r"Allocation \(size=(?P<needed>\d+)\) would exceed memory \(size=(?P<available>\d+)\).*?space=(?P<space>\w+)", re.DOTALL),
    re.compile(r"memory space (?P<space>\w+)\. Used (?P<needed>[\d.]+\w?) of (?P<available>[\d.]+\w?)"),
    re.compile(r"with size (?P<needed>[\d.]+\w?) and limit (?P<available>[\d.]+\w?) exceeded scoped (?P<space>\w+) limit"),
)  # fmt: skip
"""libtpu's messages for a program that needs more memory than the device has."""


def _out_of_memory(text: str) -> tuple[str, int, int] | None:
    """(name of the memory, bytes needed, bytes available) where the compiler ran out of one."""
    for pattern in OUT_OF_MEMORY:
        if found := pattern.search(text):
            return found["space"].upper(), _size(found["needed"]), _size(found["available"])
    return None


def _size(text: str) -> int:
    """Bytes of "15.75G"."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(text.rstrip("".join(units))) * units.get(text[-1], 1))


def _keep(module: bytes | str) -> str | None:
    """Writes a module that did not compile to a file, to reproduce the failure; returns its path."""
    data = module.encode() if isinstance(module, str) else module
    try:
        with tempfile.NamedTemporaryFile(prefix="fxhlo-refused-", suffix=".mlir", delete=False) as file:
            file.write(data)
    except OSError:
        return None
    return file.name


def first_lines(problem: BaseException, limit: int = 4) -> str:
    """The informative lines: those with `error:` if there are any, else the first few."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line and not line.startswith("<unknown>")]
    return "\n".join((errors or lines)[:limit]) or type(problem).__name__
