"""The one table of dtypes: complete, consistent, and as the formats themselves have it."""

import math

import ml_dtypes
import numpy as np
import pytest

from fxhlo.passes.mlir import context, ir
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.buffers import from_dlpack
from fxhlo.runtime.core.dtypes import BY_DLPACK, BY_HLO, BY_SAFETENSORS, BY_STABLEHLO, DTYPES
from fxhlo.runtime.core.signature import Argument


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_names_are_those_of_numpy_mlir_and_xla(dtype):
    assert dtype.numpy.name == dtype.name == np.dtype(getattr(ml_dtypes, dtype.name, dtype.name)).name
    with context():
        element = ir.RankedTensorType(ir.Type.parse(f"tensor<2x{dtype.stablehlo}>")).element_type
        assert str(element) == dtype.stablehlo
        parts = 1 if not dtype.stablehlo.startswith("complex") else 2
        width = ir.ComplexType(element).element_type.width if parts == 2 else element.width
        assert parts * width == dtype.bits
    full = f"tensor<3x{dtype.stablehlo}>"
    module = f"module {{ func.func public @main(%a: {full}) -> {full} {{ return %a : {full} }} }}"
    assert f"{dtype.hlo}[3]" in pjrt.compile(module).text


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_zeros_are_zero_bits(dtype):
    made = pjrt.get(pjrt.zeros((2, 3), dtype.numpy))
    assert (made.dtype, made.shape) == (dtype.numpy, (2, 3))
    assert made.tobytes() == bytes(6 * dtype.itemsize)


def test_no_format_has_a_name_twice():
    assert len(BY_STABLEHLO) == len(BY_HLO) == len(DTYPES)
    for table, field in ((BY_SAFETENSORS, "safetensors"), (BY_DLPACK, "dlpack")):
        assert len(table) == sum(getattr(dtype, field) is not None for dtype in DTYPES.values())


def test_safetensors_names_are_its_librarys(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save

    for code, dtype in BY_SAFETENSORS.items():
        header = b'{"a":{"dtype":"%s","shape":[3],"data_offsets":[0,%d]}}' % (code.encode(), 3 * dtype.itemsize)
        data = len(header).to_bytes(8, "little") + header + bytes(3 * dtype.itemsize)
        (tmp_path / "a").write_bytes(data)
        with safe_open(tmp_path / "a", "np") as opened:
            assert opened.get_slice("a").get_dtype() == code
    assert b'"I8"' in save({"a": np.zeros(3, np.int8)})


def test_dlpack_codes_are_torchs(torch):
    for (code, bits), dtype in BY_DLPACK.items():
        if not hasattr(torch, dtype.name):
            continue
        tensor = torch.zeros(3, dtype=torch.uint8 if bits == 8 else getattr(torch, dtype.name))
        tensor = tensor.view(getattr(torch, dtype.name))
        assert from_dlpack(tensor, Argument("a", "input", (3,), dtype.name)).dtype == dtype.numpy, (code, bits)


def test_torchs_dtypes_have_torchs_sizes(torch):
    from fxhlo.lowering.types import ELEMENTS, FROM_NUMPY

    for torch_dtype, dtype in ELEMENTS.items():
        assert FROM_NUMPY[dtype.numpy] is torch_dtype
        assert torch_dtype.itemsize == dtype.itemsize == math.ceil(dtype.bits / 8)
    assert {torch.bool, torch.bfloat16, torch.uint64, torch.complex128, torch.float8_e8m0fnu} <= ELEMENTS.keys()
    assert torch.int4 not in ELEMENTS
