"""Dtypes: every element type that fxhlo knows, once, with its name in each format that it meets.

Comes in: a dtype's name in numpy (ml_dtypes for what numpy lacks), StableHLO, XLA's HLO text, safetensors or DLPack.
Goes out: the `Dtype`. Guaranteed: names are unique within a format. torch's side is in lowering/types.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np

from .errors import SignatureError


@dataclass(frozen=True)
class Dtype:
    """One element type. An empty or absent name says that the format does not have it.

    name: numpy's, or ml_dtypes' where numpy has none; torch's is the same. stablehlo: the element type in MLIR text. hlo: in XLA's
    HLO text. safetensors: in a file's header. dlpack: type code and bits (dlpack.h, DLDataTypeCode).
    """

    name: str
    numpy: np.dtype
    stablehlo: str
    hlo: str
    safetensors: str | None = None
    dlpack: tuple[int, int] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one element in host memory; numpy keeps 4-bit types in a byte each."""
        return self.numpy.itemsize

    @property
    def bits(self) -> int:
        """Bits of one element: 1 for bool, 4 for int4."""
        return _BITS.get(self.name, 8 * self.itemsize)


_BITS = {"bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}


def _dtype(
    name: str, stablehlo: str, hlo: str, safetensors: str | None = None, dlpack: tuple[int, int] | None = None
) -> Dtype:
    return Dtype(name, np.dtype(getattr(ml_dtypes, name, name)), stablehlo, hlo, safetensors, dlpack)


_TABLE = (
    _dtype("bool", "i1", "pred", "BOOL", (6, 8)),
    _dtype("int2", "i2", "s2"),
    _dtype("int4", "i4", "s4"),
    _dtype("int8", "i8", "s8", "I8", (0, 8)),
    _dtype("int16", "i16", "s16", "I16", (0, 16)),
    _dtype("int32", "i32", "s32", "I32", (0, 32)),
    _dtype("int64", "i64", "s64", "I64", (0, 64)),
    _dtype("uint2", "ui2", "u2"),
    _dtype("uint4", "ui4", "u4"),
    _dtype("uint8", "ui8", "u8", "U8", (1, 8)),
    _dtype("uint16", "ui16", "u16", "U16", (1, 16)),
    _dtype("uint32", "ui32", "u32", "U32", (1, 32)),
    _dtype("uint64", "ui64", "u64", "U64", (1, 64)),
    _dtype("float16", "f16", "f16", "F16", (2, 16)),
    _dtype("bfloat16", "bf16", "bf16", "BF16", (4, 16)),
    _dtype("float32", "f32", "f32", "F32", (2, 32)),
    _dtype("float64", "f64", "f64", "F64", (2, 64)),
    _dtype("complex64", "complex<f32>", "c64", "C64", (5, 64)),
    _dtype("complex128", "complex<f64>", "c128", None, (5, 128)),
    _dtype("float4_e2m1fn", "f4E2M1FN", "f4e2m1fn"),
    _dtype("float8_e3m4", "f8E3M4", "f8e3m4", None, (7, 8)),
    _dtype("float8_e4m3", "f8E4M3", "f8e4m3", None, (8, 8)),
    _dtype("float8_e4m3b11fnuz", "f8E4M3B11FNUZ", "f8e4m3b11fnuz", None, (9, 8)),
    _dtype("float8_e4m3fn", "f8E4M3FN", "f8e4m3fn", "F8_E4M3", (10, 8)),
    _dtype("float8_e4m3fnuz", "f8E4M3FNUZ", "f8e4m3fnuz", "F8_E4M3FNUZ", (11, 8)),
    _dtype("float8_e5m2", "f8E5M2", "f8e5m2", "F8_E5M2", (12, 8)),
    _dtype("float8_e5m2fnuz", "f8E5M2FNUZ", "f8e5m2fnuz", "F8_E5M2FNUZ", (13, 8)),
    _dtype("float8_e8m0fnu", "f8E8M0FNU", "f8e8m0fnu", "F8_E8M0", (14, 8)),
)

DTYPES: Mapping[str, Dtype] = MappingProxyType({one.name: one for one in _TABLE})
"""By the name in numpy or ml_dtypes, which is torch's too."""
BY_STABLEHLO: Mapping[str, Dtype] = MappingProxyType({one.stablehlo: one for one in _TABLE})
BY_HLO: Mapping[str, Dtype] = MappingProxyType({one.hlo: one for one in _TABLE})
BY_SAFETENSORS: Mapping[str, Dtype] = MappingProxyType({one.safetensors: one for one in _TABLE if one.safetensors})
BY_DLPACK: Mapping[tuple[int, int], Dtype] = MappingProxyType({one.dlpack: one for one in _TABLE if one.dlpack})


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of a name such as "float32", "bool", "bfloat16". Raises SignatureError for any other text."""
    try:
        return DTYPES[name].numpy
    except KeyError:
        next_step = "use a name of numpy or ml_dtypes, such as float32 or bfloat16"
        raise SignatureError(f"there is no dtype {name!r}", next_step=next_step) from None
