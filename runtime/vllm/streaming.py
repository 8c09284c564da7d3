"""Streams weights onto a device that is not the host: each parameter goes there as soon as all of it was loaded, and its memory here is freed.

Comes in: a model whose parameters vLLM's loader fills, in whatever way, and a device. Goes out: a device array per parameter, and the
model with its parameters on the meta device. Guaranteed: a parameter that is read or written again after it has gone (tied ones that are
compared, weights that a layer changes after loading) is brought back for that operation; so the host holds the parameters that are
being filled, and no others. Of a parameter whose parts other hosts hold, no more is read of the files than what this one's devices hold.

vLLM makes parameters by `torch.empty`, which takes address space and no memory until it is written. A TorchDispatchMode sees which
bytes an operation writes, as in loading.py, and a parameter is complete when all of them were written. Tensors of safetensors files are
mapped, so what is read of them is no memory of this process, and what is not copied of them is not read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..core.buffers import host_array
from ..core.pjrt import Buffer
from ..core.signature import Argument
from .owned import Owned, copy_owned
from .touched import Touched, Watching, storage_of

COPY = torch.ops.aten.copy_.default
FILLS = (COPY, torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor, torch.ops.aten.zero_.default)
"""Operations that write a tensor and do not read it."""
TRIM = 64 << 20
"""Bytes that are freed before the allocator is asked to give them back to the system: it keeps what is not at the end of its heap."""


@dataclass
class _Weight:
    """A parameter that is the only one in its storage, and fills it. name: in the model. tensor: as it was made, whatever `data` it gets.
    buffer: its value on the device, once it has gone. owned: what this host's devices hold of it; None: all. left: where that is less, what
    was written, in order; a copy left out what others hold."""

    name: str
    tensor: torch.Tensor
    written: Touched = field(default_factory=Touched)
    bytes: int = 0
    buffer: Buffer | None = None
    here: bool = True
    owned: Owned | None = None
    left: list[Callable[[], object]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every byte was written. The number of bytes is compared first, which is cheap."""
        return self.bytes >= self.tensor.nbytes and self.written.missing(self.tensor) is None

    def resize(self, size: int) -> None:
        """Frees the memory, with 0, or takes as much as it needs."""
        self.tensor.untyped_storage().resize_(size)

    def catch_up(self) -> None:
        """Has all of it here, and not only what this host's devices hold."""
        left, self.left = self.left, []
        for write in left:
            write()


class Stream(Watching):
    """with Stream(put, get) as stream: stream.watch(model); load; then stream.finish(model).

    put: places a parameter of a name, a host array whose memory does not change until the result is there. get: the values of one that
    was placed, of the shape that it had. owned: what of a parameter of a name and shape `put` reads; None for all.
    """

    def __init__(
        self,
        put: Callable[[str, np.ndarray], Buffer],
        get: Callable[[str, Buffer], np.ndarray],
        owned: Callable[[str, Sequence[int]], Owned | None] = lambda name, shape: None,
    ) -> None:
        super().__init__()
        self._put, self._get, self._owned = put, get, owned
        self._weights: dict[int, _Weight] = {}
        self._freed = 0
        self.held = 0
        """Bytes of parameters that were written to and are here."""
        self.peak = 0
        """The most of them at a time."""
        self.read = 0
        """Bytes that were copied into parameters: of files, where these are mapped."""

    def watch(self, model: nn.Module) -> None:
        """Begins with the parameters that `model` has now, before they are loaded. One of which a buffer is a view stays here until `finish`."""
        seen = {storage_of(buffer) for buffer in model.buffers()}
        for name, parameter in model.named_parameters():
            storage = parameter.untyped_storage()
            alone = (
                parameter.is_contiguous()
                and not parameter.storage_offset()
                and storage.nbytes() == parameter.nbytes
                and storage_of(parameter) not in seen
            )
            if alone and parameter.nbytes and storage.resizable():
                weight = _Weight(name, parameter.detach(), owned=self._owned(name, parameter.shape))
                self._weights.setdefault(storage_of(parameter), weight)

    def finish(self, model: nn.Module) -> dict[str, Buffer]:
        """Places what has not gone yet, and leaves `model` without values. Returns a device array per parameter, by name."""
        placed = {name: self._placed(name, parameter) for name, parameter in model.named_parameters()}
        _forget_values(model)
        self._weights.clear()
        trim()
        return placed

    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._weights:
            return func(*args, **kwargs)
        used = list(self._used(func, args, kwargs))
        for weight, _, how in used:
            if how != "view":
                self._bring_back(weight)
            if weight.left and (how == "read" or (how == "write" and func not in FILLS)):
                weight.catch_up()
        emptied = {id(weight): weight for weight, _, _ in used if not weight.here}
        for weight in emptied.values():
            weight.resize(weight.tensor.nbytes)  # for a view, which must not end beyond its storage; nothing is written
        write = partial(func, *args, **kwargs)
        result = args[0] if self._copies_owned(func, used, args) else write()
        for weight in emptied.values():
            weight.resize(0)
        for weight, tensor, how in used:
            if how == "write":
                if func in FILLS and weight.owned is not None:
                    weight.left.append(write)
                self._note(weight, tensor)
        for weight, _, _ in used:
            if weight.here and weight.complete:
                self._send(weight)
        return result

    # -- one parameter -------------------------------------------------------------------------------------------------

    def _used(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[_Weight, torch.Tensor, Literal["read", "write", "view"]]]:
        """(parameter, view of it, what happens to that) for each one among the operation's arguments."""
        schema = func._schema.arguments
        given = [*zip(schema, args, strict=False), *((one, kwargs[one.name]) for one in schema if one.name in kwargs)]
        for argument, value in given:
            alias = argument.alias_info
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if (
                    not isinstance(tensor, torch.Tensor) or not tensor.numel()
                ):  # vLLM fills the padding of embeddings, if any
                    continue
                if (weight := self._weights.get(storage_of(tensor))) is not None:
                    yield weight, tensor, "read" if alias is None else "write" if alias.is_write else "view"

    def _copies_owned(
        self, func: Any, used: Sequence[tuple[_Weight, torch.Tensor, str]], args: tuple[Any, ...]
    ) -> bool:
        """Copies what this host's devices hold, where the operation fills a parameter of which others hold parts. Returns whether it did."""
        if func is not COPY or not used or used[0][2] != "write":
            return False
        weight, view, _ = used[0]
        read = None
        if weight.owned is not None and len(used) == 1:
            read = copy_owned(view, args[1], weight.tensor, weight.owned)
        self.read += args[1].nbytes if read is None else read
        return read is not None

    def _note(self, weight: _Weight, tensor: torch.Tensor) -> None:
        if not weight.bytes:
            self._hold(weight)
        weight.written.add(tensor)
        weight.bytes += tensor.nbytes
        weight.buffer = None  # an earlier value

    def _send(self, weight: _Weight) -> None:
        """Puts it on the device, where it has changed, and frees its memory here."""
        if weight.buffer is None:
            weight.buffer = self._sent(weight.name, weight.tensor)
        weight.resize(0)
        weight.here = False
        weight.left.clear()
        self.held -= weight.tensor.nbytes
        self._freed += weight.tensor.nbytes
        if self._freed >= TRIM:
            self._freed = 0
            trim()

    def _bring_back(self, weight: _Weight) -> None:
        if weight.here:
            return
        assert weight.buffer is not None
        values = np.ascontiguousarray(self._get(weight.name, weight.buffer))
        weight.resize(values.nbytes)
        ctypes.memmove(weight.tensor.untyped_storage().data_ptr(), values.ctypes.data, values.nbytes)
        weight.here = True
        self._hold(weight)

    def _hold(self, weight: _Weight) -> None:
        self.held += weight.tensor.nbytes
        self.peak = max(self.peak, self.held)

    def _sent(self, name: str, tensor: torch.Tensor) -> Buffer:
        """The tensor's value on the device, when it is there."""
        # by DLPack: `Tensor.numpy` would forbid that the storage is resized
        argument = Argument("parameter", "weight", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        buffer = self._put(name, host_array(tensor.detach(), argument))
        buffer.block_until_ready()
        return buffer

    def _placed(self, name: str, parameter: nn.Parameter) -> Buffer:
        """The device array of a parameter as it is after loading: perhaps with another tensor than the one that was watched."""
        weight = self._weights.get(storage_of(parameter))
        if weight is None:
            return self._sent(name, parameter.contiguous())
        same = (parameter.shape, parameter.dtype, parameter.stride()) == (
            weight.tensor.shape,
            weight.tensor.dtype,
            weight.tensor.stride(),
        )
        if weight.here or not same:
            self._bring_back(weight)
            weight.catch_up()
            return self._sent(name, parameter.contiguous())
        assert weight.buffer is not None
        return weight.buffer


def _forget_values(model: nn.Module) -> None:
    """Puts each parameter's twin on the meta device in its place: what was one parameter stays one, attributes stay."""
    twins: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = twins.setdefault(id(parameter), _twin(parameter))


def restore(model: nn.Module, parameter: nn.Parameter, values: np.ndarray) -> None:
    """Puts a parameter with these values in the place of its twin on the meta device, wherever the model has it."""
    tensor, given = torch.empty_like(parameter, device="cpu"), np.ascontiguousarray(values)
    ctypes.memmove(tensor.data_ptr(), given.ctypes.data, given.nbytes)
    made = nn.Parameter(tensor, requires_grad=False)
    made.__class__ = parameter.__class__
    made.__dict__.update(parameter.__dict__)
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is parameter:
                module._parameters[name] = made


def _twin(parameter: nn.Parameter) -> nn.Parameter:
    made = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    made.__class__ = parameter.__class__
    made.__dict__.update(parameter.__dict__)
    return made


def trim() -> None:
    """Has the C library give freed memory back to the system; a library without the call keeps it for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
