"""`lower-model conformance`, for authors of backends: runs kernels' cases and a selection of ops end to end on one target.

Comes in: a target's name. Goes out: a table or JSON; exit 1 where something was refused by the compiler or computed otherwise.
Guaranteed: each group runs in a process of its own, so a plugin that aborts is a line of the table; numbers are compared with
eager torch wherever a device of the target is here, and the table says where they were not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ..kernels.catalog import kernels
from ..runtime.core.errors import FxhloError
from ..runtime.core.names import suggestion
from ..runtime.core.targets import Target
from . import console
from .imports import import_words
from .kernel_matrix import FAST, restarted, run_group

if TYPE_CHECKING:
    import torch

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
"""The largest difference allowed of an op's result, as a fraction of its largest magnitude."""


@dataclass(frozen=True)
class Line:
    """compiled, checked: "yes", "no: ...", or "not run"."""

    group: str
    name: str
    implementation: str = ""
    compiled: str = "not run"
    checked: str = "not run"

    @property
    def failed(self) -> bool:
        return self.compiled.startswith("no:") or self.checked.startswith("no:")


def ops() -> dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]]:
    """A selection of ops: one or two of each family, in the dtypes that models use, with their operands."""
    import torch
    from torch.nn import functional as f

    torch.manual_seed(0)
    wide, square, narrow = torch.randn(8, 128), torch.randn(64, 64), torch.randn(8, 128, dtype=torch.bfloat16)
    image, whole = torch.randn(2, 3, 16, 16), torch.randint(0, 64, (8, 16))
    positive = torch.rand(8, 128) + 0.1
    return {
        "add, bfloat16": (torch.add, (narrow, narrow)),
        "exp and log": (lambda x: torch.exp(x) + torch.log(x), (positive,)),
        "gelu": (f.gelu, (wide,)),
        "silu, bfloat16": (f.silu, (narrow,)),
        "division of integers": (lambda x: torch.div(x, 7, rounding_mode="floor"), (whole,)),
        "comparison and where": (lambda x: torch.where(x > 0, x, -x), (wide,)),
        "product, float32": (torch.matmul, (square, square)),
        "product, bfloat16": (torch.matmul, (narrow, torch.randn(128, 32, dtype=torch.bfloat16))),
        "batched product": (torch.bmm, (torch.randn(4, 8, 16), torch.randn(4, 16, 8))),
        "convolution": (f.conv2d, (image, torch.randn(6, 3, 3, 3))),
        "sum and mean": (lambda x: x.sum(0) + x.mean(0), (wide,)),
        "argmax": (lambda x: x.argmax(-1), (wide,)),
        "cumulative sum": (lambda x: torch.cumsum(x, -1), (wide,)),
        "softmax": (lambda x: torch.softmax(x, -1), (wide,)),
        "layer norm": (lambda x: f.layer_norm(x, (128,)), (wide,)),
        "sort": (lambda x: torch.sort(x, -1).values, (wide,)),
        "top-k": (lambda x: torch.topk(x, 5).values, (wide,)),
        "gather": (lambda x, i: torch.gather(x, 0, i % 8), (wide[:, :16], whole)),
        "embedding": (lambda i, x: f.embedding(i, x), (whole, square)),
        "index put": (lambda x, y: x.index_put((torch.tensor([1, 3]),), y), (wide, wide[:2])),
        "scatter add": (lambda x, i: torch.zeros(64, 16).scatter_add(0, i, x), (wide[:, :16], whole)),
        "concatenate, slice, permute": (lambda x: torch.cat([x, x[:, :5]], 1).permute(1, 0), (wide,)),
        "pooling": (lambda x: f.max_pool2d(x, 2), (image,)),
        "resize": (lambda x: f.interpolate(x, scale_factor=2.0, mode="bilinear"), (image,)),
        "attention": (f.scaled_dot_product_attention, (torch.randn(1, 4, 8, 16),) * 3),
    }


def run_op(name: str, target: Target) -> Line:
    """Runs one op end to end and compares its numbers with eager torch where the target has a device here."""
    import torch

    from ..lowering.lower import lower
    from ..runtime.core import pjrt
    from ..runtime.core.executable import Executable

    function, arguments = ops()[name]
    line = Line("ops", name)

    class Op(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return function(*tensors)

    module = lower(Op(), arguments, target=target)
    legalized = module.legalized()
    options = FAST if target.family == "tpu" else None
    try:
        compiled = pjrt.build(legalized.bytecode, target, options=options, custom_calls=legalized.custom_calls)
    except FxhloError as problem:
        return replace(line, compiled=f"no: {problem.message.splitlines()[0][:300]}")
    line = replace(line, compiled="yes")
    if not isinstance(compiled, pjrt.Loaded):
        return line
    (result,) = Executable(compiled, module.signature).bind(module.arrays())(*arguments)
    wanted = function(*arguments)
    mine = torch.from_dlpack(pjrt.get(result).copy()) if wanted.dtype != torch.bfloat16 else torch.from_dlpack(result)
    apart = float((mine.double() - wanted.double()).abs().max()) / (float(wanted.double().abs().max()) or 1.0)
    allowed = TOLERANCE.get(str(wanted.dtype).removeprefix("torch."), 0.0)
    return replace(line, checked="yes" if apart <= allowed else f"no: {apart:.2g} apart, {allowed:g} is allowed")


def conformance(
    where: Target,
    names: Sequence[str] = (),
    *,
    ops: bool = True,
    as_json: bool = False,
    imports: Sequence[str] = (),
) -> None:
    """Runs everything and shows it. imports: modules that a worker's process imports, as this one did.

    Raises FxhloError where something failed, UsageError for an unknown kernel.
    """
    known = [kernel.name for kernel in kernels().values() if kernel.cases()]
    for name in names:
        if name not in known:
            raise console.UsageError(
                f"--kernel {name}: there is no kernel {name!r} with cases",
                next_step=suggestion(name, known, "those with cases are"),
            )
    lines = []
    for kernel in kernels().values():
        if kernel.cases() and (not names or kernel.name in names):
            lines += [
                Line(f"fxhlo.{kernel.name}", one.case, one.implementation, one.compiled, one.checked)
                for one in run_group(kernel.name, str(where), console.say, imports)
            ]
    if ops and not names:
        lines += _ops(where, imports)
    console.put(json.dumps([asdict(line) for line in lines], indent=2) if as_json else _table(lines))
    failed = [line for line in lines if line.failed]
    checked = sum(line.checked == "yes" for line in lines)
    if failed:
        raise FxhloError(
            f"{len(failed)} of {len(lines)} cases failed on {where}; the first: {failed[0].group}, {failed[0].name}",
            next_step="make supports() give a reason for what the kernel does not take, or correct the kernel or the compiler",
        )
    console.say(f"{len(lines)} cases compile for {where}; the numbers of {checked} were checked")


def _ops(target: Target, imports: Sequence[str]) -> list[Line]:
    names = list(ops())
    command = [sys.executable, "-P", "-m", "fxhlo.tools.conformance", "--worker", str(target), *imports]
    found = restarted(command, len(names))
    return [
        Line("ops", name, compiled=f"no: {one}") if isinstance(one, str) else Line(**one)
        for name, one in zip(names, found, strict=True)
    ]


def _table(lines: Sequence[Line]) -> str:
    rows = [("", "case", "implementation", "compiled", "numbers")]
    rows += [(line.group, line.name, line.implementation, line.compiled, line.checked) for line in lines]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), *row[3:]]) for row in rows
    )


def worker(target: str, first: int) -> None:
    """Prints a line per op as JSON; in the process that `conformance` starts."""
    for name in list(ops())[first:]:
        try:
            line = run_op(name, Target.parse(target))
        except Exception as problem:
            line = Line("ops", name, compiled=f"no: {type(problem).__name__}: {console.first_line(problem)[:200]}")
        print(json.dumps(asdict(line)), flush=True)


if __name__ == "__main__":
    import_words(sys.argv[3:-1])
    worker(sys.argv[2], int(sys.argv[-1]))
