"""Stand-ins: replacements, while a module is exported, for functions of torch that read tensors' values.

`torch.cov` asks whether its divisor is positive, `torch.combinations` selects by a mask that depends on sizes alone,
`torch.narrow` reads a start that is a tensor, `torch.equal` returns a Python bool, `x[t]` reads a 0-d tensor, nn.Transformer
checks whether its mask is causal: tracing stops at each.
Comes in: a module's calls, while it is exported. Goes out: the same calls, or those of their stand-ins.
Guaranteed: a stand-in computes what eager torch computes, wherever eager torch raises no error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import combinations as choices
from itertools import combinations_with_replacement
from math import log, pi
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ...passes import torch_private
from ...passes.torch_private import causal_mask_detection
from ..decompositions.ctc import ctc_loss
from ..errors import CaptureError


def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """torch.cov without its check that the divisor is positive. input: [variables, observations]; the weights: [observations]."""
    x = input.reshape(1, -1) if input.ndim < 2 else input
    count = x.shape[1]
    weights: Any = fweights
    if aweights is not None:
        weights = aweights if fweights is None else aweights * fweights
    if weights is None:
        total: Tensor | int = count
        mean = x.sum(1) / total
    else:
        total = weights.sum()
        mean = (x * weights).sum(1) / total
    if correction == 0:
        divisor = total
    elif aweights is None:
        divisor = total - correction
    else:
        squares = (aweights * weights).sum()
        divisor = total - correction * squares / total
    divisor = torch.clamp(divisor, min=0) if isinstance(divisor, Tensor) else max(divisor, 0)
    centered = x - mean.unsqueeze(1)
    weighted = centered if weights is None else centered * weights
    return (torch.matmul(centered, weighted.t().conj()) / divisor).squeeze()


def corrcoef(input: Tensor) -> Tensor:
    covariance = cov(input)
    if covariance.ndim == 0:
        return covariance / covariance
    deviation = covariance.diagonal().real.sqrt() if covariance.is_complex() else covariance.diagonal().sqrt()
    scaled = covariance / deviation.unsqueeze(-1) / deviation.unsqueeze(0)
    if scaled.is_complex():
        return torch.complex(scaled.real.clip(-1, 1), scaled.imag.clip(-1, 1))
    return scaled.clip(-1, 1)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """torch.combinations by indices made ahead of time: they depend on the size alone."""
    if r == 0:
        return input.new_empty([0])
    choose = combinations_with_replacement if with_replacement else choices
    places = list(choose(range(input.shape[0]), r))
    if not places:
        return input.new_empty([0, r])
    return input[torch.tensor(places)]


def narrow(input: Tensor, dim: int, start: int | Tensor, length: int) -> Tensor:
    """torch.narrow with a start that is a tensor, by index_select: the length is a number."""
    if not isinstance(start, Tensor):
        return torch.ops.aten.narrow.default(input, dim, start, length)
    first = torch.where(start < 0, start + input.shape[dim], start)
    return torch.index_select(input, dim, (first + torch.arange(length)).reshape(-1))


def equal(input: Tensor, other: Tensor) -> Tensor | bool:
    """torch.equal as a 0-d bool tensor, where eager torch returns a Python bool; False for different shapes."""
    if input.shape != other.shape:
        return False
    return (input == other).all()


def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    return torch.isclose(input, other, rtol, atol, equal_nan).all()


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """torch's loss without its check that all variances are positive."""
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    var = torch.clamp(var, min=eps)
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    loss = loss + 0.5 * log(2 * pi) if full else loss
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def is_causal_mask(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """nn.Transformer's test without reading the mask's values: a causal mask could be left out, and is added as given instead."""
    return is_causal is True


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """torch.max_pool1d by max_pool2d where the length is symbolic: torch's own makes it a number."""
    if return_indices or not isinstance(input.shape[-1], torch.SymInt):
        pool: Any = torch.nn.functional.max_pool1d
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    sizes = [
        one[0] if isinstance(one, list | tuple) and one else one for one in (kernel_size, stride, padding, dilation)
    ]
    kernel, step, pad, spread = sizes
    plane = torch.max_pool2d(
        input.unsqueeze(-2), (1, kernel), (1, step or kernel), (0, pad), (1, spread), bool(ceil_mode)
    )
    return plane.squeeze(-2)


def linspace(start: Any, end: Any, steps: Any = None, **options: Any) -> Tensor:
    """torch.linspace with a symbolic number of steps, which torch's own makes a number."""
    if not isinstance(steps, torch.SymInt):
        return torch.linspace(start, end, steps, **options)
    options.pop("out", None)
    options.pop("requires_grad", None)
    count: Any = steps
    return torch_private.linspace(start, end, count, **options)


def _by_tensor(index: object) -> bool:
    """Whether an index has a 0-d integer tensor, which torch.export would read, and no new dimensions or masks."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(_is_number(part) for part in parts) and all(
        part is Ellipsis
        or (isinstance(part, Tensor) and part.dtype in INTEGERS)
        or (isinstance(part, int | slice | torch.SymInt) and not isinstance(part, bool))
        for part in parts
    )


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def _is_number(part: object) -> bool:
    return isinstance(part, Tensor) and part.ndim == 0 and part.dtype in INTEGERS


def _split(self: Tensor, index: Any) -> tuple[Tensor, list[Tensor], tuple[Any, ...]]:
    """Returns (a view of self whose first dimensions the 0-d tensors index, the 0-d tensors, the index of the other dimensions).

    torch applies numbers, 0-d tensors and slices first; tensors with dimensions index the result.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    for place, part in enumerate(parts):
        if part is Ellipsis:
            parts[place : place + 1] = [slice(None)] * (self.ndim - len(parts) + 1)
            break
    view = self[tuple(slice(None) if isinstance(part, Tensor) else part for part in parts)]
    left = [part if isinstance(part, Tensor) else slice(None) for part in parts if isinstance(part, Tensor | slice)]
    selected = [dim for dim, part in enumerate(left) if _is_number(part)]
    numbers = [part for part in left if isinstance(part, Tensor) and _is_number(part)]
    return (
        view.movedim(selected, list(range(len(selected)))),
        numbers,
        tuple(part for part in left if not _is_number(part)),
    )


def getitem(self: Tensor, index: Any) -> Tensor:
    if not _by_tensor(index):
        return self[index]
    view, numbers, rest = _split(self, index)
    found = torch.ops.aten.index.Tensor(view, numbers)
    return found[rest] if any(isinstance(part, Tensor) for part in rest) else found


def setitem(self: Tensor, index: Any, value: Any) -> None:
    if not _by_tensor(index):
        self[index] = value
        return
    view, numbers, rest = _split(self, index)
    given = value.to(self.dtype) if isinstance(value, Tensor) else torch.full([], value, dtype=self.dtype)
    if any(isinstance(part, Tensor) for part in rest):
        changed = torch.ops.aten.index.Tensor(view, numbers)
        changed[rest] = given
        given = changed
    while given.ndim > view.ndim - len(numbers):
        given = given.squeeze(0)
    torch.ops.aten.index_put_.default(view, numbers, given)


def _assign_data(module: torch.nn.Module, tensor: Tensor, value: Tensor, line: str, lines: set[str]) -> None:
    """`tensor.data = value` of a weight or a buffer as an in-place copy; memory.py checks that the two are equivalent.

    lines: gets `line`. Raises CaptureError for any other tensor, whose memory others may share.
    """
    same = tensor.shape == value.shape and tensor.dtype == value.dtype
    owned = any(tensor is one for one in (*module.parameters(), *module.buffers()))
    if owned and same:
        lines.add(line)
        tensor.detach().copy_(value.detach())
        return
    raise CaptureError(
        "a tensor's .data is assigned, which a graph cannot hold"
        if same
        else f"a tensor's .data is assigned, and it is {_type(value)} after {_type(tensor)}",
        where=line,
        next_step="write it out of place: x = y, or x.copy_(y) where its old memory is meant to change",
    )


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _line(frame: FrameType | None) -> str:
    """ "file:line" of the innermost frame outside torch."""
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def _type(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


STAND_INS: dict[Callable[..., object], Callable[..., object]] = {
    torch.cov: cov,
    Tensor.cov: cov,
    torch.corrcoef: corrcoef,
    Tensor.corrcoef: corrcoef,
    torch.combinations: combinations,
    torch.narrow: narrow,
    torch.equal: equal,
    Tensor.equal: equal,
    torch.allclose: allclose,
    Tensor.allclose: allclose,
    Tensor.narrow: narrow,
    Tensor.__getitem__: getitem,
    Tensor.__setitem__: setitem,
    torch.nn.functional.gaussian_nll_loss: gaussian_nll_loss,
    torch.nn.functional.ctc_loss: ctc_loss,
    torch.ctc_loss: ctc_loss,
    torch.max_pool1d: max_pool1d,
    torch.nn.functional.max_pool1d: max_pool1d,
    torch.linspace: linspace,
}


class StandIns(torch.overrides.TorchFunctionMode):
    """Replaces calls of the functions in STAND_INS by calls of their stand-ins while it is entered.

    note: called with the frame of each call. assigned: collects the lines, as "file:line", that assign a weight's .data.
    """

    def __init__(self, module: torch.nn.Module, note: Callable[[FrameType], None], assigned: set[str]) -> None:
        super().__init__()
        self.module = module
        self.note = note
        self.assigned = assigned

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        if not torch.compiler.is_dynamo_compiling():  # dynamo traces regions of control flow, and this mode with them
            self.note(sys._getframe(1))
        if func == _SET_DATA:
            tensor, value = args
            return _assign_data(self.module, tensor, value, _line(sys._getframe(1)), self.assigned)
        return STAND_INS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def standing_in(module: torch.nn.Module, note: Callable[[FrameType], None]) -> Iterator[set[str]]:
    """Runs `module` under StandIns while it is entered: before torch.export's own mode, which would read `x[t]`.

    Yields a set that holds, once the module has run, the lines that assign a weight's or a buffer's .data.
    """
    assigned: set[str] = set()

    def watched(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        with StandIns(module, note, assigned):
            return forward(*args, **kwargs)

    with causal_mask_detection(is_causal_mask), forward_through(module, watched):
        yield assigned


@contextmanager
def forward_through(module: torch.nn.Module, call: Callable[..., object]) -> Iterator[None]:
    """Makes `module(*args)` run `call(forward, *args)` while it is entered."""
    own = vars(module).get("forward")
    forward = module.forward

    @wraps(forward)
    def wrapped(*args: object, **kwargs: object) -> object:
        return call(forward, *args, **kwargs)

    vars(module)["forward"] = wrapped
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own
