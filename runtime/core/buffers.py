"""Turns a caller's values (numpy, anything with DLPack, Python numbers) into device arrays, checked against a signature.

Comes in: a value and the `Argument` it is for. Goes out: a device array of exactly that shape and dtype.
Guaranteed: dtypes are never converted; a tensor is read without importing its library.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .dtypes import BY_DLPACK, dtype_of
from .errors import ShapeError
from .pjrt import Buffer, Device
from .signature import Argument


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, the same in every version of the protocol."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Tensor(Protocol):
    """A tensor of another library on the host: what `numpy.from_dlpack` takes too."""

    def __dlpack__(self) -> object: ...


Value = np.ndarray | np.generic | bool | int | float | complex | Tensor | Buffer
"""What a call takes for an argument."""

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def place(value: Value, argument: Argument, device: Device, *, shared: bool = False) -> Buffer:
    """`value` as a device array for `argument`; a copy unless it may be `shared` host memory (for weights).

    Raises ShapeError naming the argument, what it takes and what it got.
    """
    if isinstance(value, Buffer):
        return _placed(value, argument, device, shared)
    array = host_array(value, argument)
    check(array.shape, array.dtype, argument)
    return device.put_shared(array, argument.sharding) if shared else device.put(array, argument.sharding)


def check(shape: Sequence[int], dtype: np.dtype, argument: Argument) -> None:
    """Raises ShapeError where `argument` takes another shape or dtype."""
    if tuple(shape) == argument.shape and dtype == dtype_of(argument.dtype):
        return
    if tuple(shape) != argument.shape:
        next_step = "a module takes the shapes that it was lowered for"
    else:
        next_step = "convert it: a call never converts dtypes"
    raise ShapeError(f"{_takes(argument)}, and got {dtype}[{','.join(map(str, shape))}]", next_step=next_step)


def host_array(value: Value, argument: Argument) -> np.ndarray:
    """`value` as numpy, sharing its memory: an array, a numpy scalar, or a host tensor with DLPack, whatever its dtype.

    Raises ShapeError for anything else.
    """
    if isinstance(value, np.ndarray | np.generic):  # before numbers: np.float64 is a float
        return np.asarray(value)
    if isinstance(value, bool | int | float | complex):
        return number(value, argument)
    if hasattr(value, "__dlpack__"):
        return from_dlpack(value, argument)
    raise ShapeError(
        f"{_takes(argument)}, and got {type(value).__name__}",
        next_step="pass a numpy array, something with DLPack, or a device array",
    )


def number(value: bool | int | float | complex, argument: Argument) -> np.ndarray:
    """A Python number as the 0-d array that `argument` takes; ShapeError where it does not fit."""
    if argument.shape:
        check((), np.asarray(value).dtype, argument)
    family = re.sub(r"\d.*", "", argument.dtype)  # "float8_e4m3fn" to "float"
    takes = {"bool": (bool,), "int": (int,), "uint": (int,), "complex": (int, float, complex)}.get(family, (int, float))
    try:
        if isinstance(value, takes) and (not isinstance(value, bool) or bool in takes):
            return np.asarray(value, dtype_of(argument.dtype))
    except (OverflowError, ValueError, TypeError):
        pass
    raise ShapeError(f"{_takes(argument)}, and got {value!r}")


def from_dlpack(value: Tensor, argument: Argument) -> np.ndarray:
    """A numpy view of a host tensor that speaks DLPack, in any dtype that numpy or ml_dtypes has, with its strides."""
    what = f"{argument.kind} {argument.name} got a {type(value).__name__}"
    try:
        capsule = value.__dlpack__()
    except (BufferError, RuntimeError, TypeError) as problem:
        if getattr(value, "requires_grad", False):
            return from_dlpack(value.detach(), argument)  # type: ignore[attr-defined]  # a tensor of torch's
        raise ShapeError(f"{what} that DLPack refuses: {problem}") from problem
    tensor = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    if tensor.device_type not in (1, 3):  # kDLCPU, kDLCUDAHost
        raise ShapeError(
            f"{what} on another device (DLPack device type {tensor.device_type})",
            next_step="copy it to the host first, or pass a device array of this executable's device",
        )
    dtype = BY_DLPACK.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise ShapeError(f"{what} of DLPack type {tensor.code} with {tensor.bits} bits, which has no dtype here")
    return _view(tensor, capsule, dtype.numpy)


def _takes(argument: Argument) -> str:
    return f"{argument.kind} {argument.name} takes {argument.dtype}[{','.join(map(str, argument.shape))}]"


def _view(tensor: _DLTensor, capsule: object, dtype: np.dtype) -> np.ndarray:
    """The tensor's memory as numpy; `capsule` (which frees it) lives as long as the array does."""
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if 0 in shape:
        return np.zeros(shape, dtype)
    steps = [tensor.strides[axis] for axis in range(tensor.ndim)] if tensor.strides else None
    strides = None if steps is None else tuple(step * dtype.itemsize for step in steps)
    last = (
        int(np.prod(shape))
        if steps is None
        else 1 + sum(step * (size - 1) for step, size in zip(steps, shape, strict=True))
    )
    memory = (ctypes.c_uint8 * (last * dtype.itemsize)).from_address(tensor.data + tensor.byte_offset)
    memory.owner = capsule  # type: ignore[attr-defined]
    return np.ndarray(shape, dtype, memory, strides=strides)  # type: ignore[arg-type]  # a buffer from Python 3.12 on


def _placed(value: Buffer, argument: Argument, device: Device, shared: bool) -> Buffer:
    """A device array, moved through the host if it is elsewhere."""
    if value.is_deleted():
        raise ShapeError(
            f"{argument.kind} {argument.name} got a buffer that an earlier call consumed, as donated state is",
            next_step="pass the new state from that call's results",
        )
    check(value.shape, value.dtype, argument)
    if device.holds(value, argument.sharding):
        return value
    array = np.asarray(value)
    return device.put_shared(array, argument.sharding) if shared else device.put(array, argument.sharding)
