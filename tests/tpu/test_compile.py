"""libtpu compiles for every generation on this machine; what does not fit or is not there is told in one clear error."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fxhlo.kernels.spec import Implementation, Operands, TensorSpec
from fxhlo.passes import mlir
from fxhlo.passes.hlo.implementation import lower_implementation
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.bundle import Bundle
from fxhlo.runtime.core.errors import CompileError, OutOfMemoryError, UnsupportedError
from fxhlo.runtime.core.signature import Argument, Result, Signature
from fxhlo.runtime.core.targets import KNOWN, Target

TPUS = [name for name in KNOWN if name.startswith("tpu-")]
FAST = {"exec_time_optimization_effort": -1.0}
DOUBLE = (
    "module { func.func public @main(%x: tensor<ROWSx128xf32>) -> tensor<ROWSx128xf32> {"
    " %0 = stablehlo.add %x, %x : tensor<ROWSx128xf32> return %0 : tensor<ROWSx128xf32> } }"
)


@pytest.fixture(autouse=True)
def refused_modules_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def doubled(rows: int) -> str:
    return DOUBLE.replace("ROWS", str(rows))


def lowered(target: str, function: object, rows: int, columns: int) -> str:
    """A Pallas call over one float32 operand, as a kernel's implementation is lowered."""
    from jax.experimental import pallas

    def call(x):  # type: ignore[no-untyped-def]
        import jax

        return pallas.pallas_call(function, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    operands = Operands.of(["x"], [TensorSpec((rows, columns), np.dtype("float32"))])
    return lower_implementation(Implementation("tpu", "pallas", call), operands, {}, Target.parse(target))


def twice(x, y):  # type: ignore[no-untyped-def]
    y[...] = x[...] * 2


@pytest.mark.parametrize("target", TPUS)
def test_every_generation_compiles_stablehlo_and_a_pallas_kernel(target: str) -> None:
    compiled = pjrt.build(doubled(256), target, options=FAST)
    assert not isinstance(compiled, pjrt.Loaded)
    assert (compiled.memory.arguments, compiled.memory.outputs) == (256 * 128 * 4, 256 * 128 * 4)
    assert compiled.serialize()
    assert pjrt.fingerprint(target)["device"] == Target.parse(target).device_kind
    kernel = pjrt.compile_ahead(lowered(target, twice, 64, 128), target, options=FAST)
    assert 'custom_call_target="tpu_custom_call"' in kernel.text


@pytest.mark.parametrize("target", TPUS)
def test_the_memory_and_the_rates_of_a_target_are_the_compilers(target: str) -> None:
    known, size = Target.parse(target), 4096
    assert known.memory and known.bandwidth
    with pytest.raises(OutOfMemoryError) as caught:
        pjrt.compile_ahead(doubled(2**30), target, options=FAST)
    assert (caught.value.memory, caught.value.available) == ("HBM", known.memory)
    assert caught.value.needed == 2 * 2**30 * 128 * 4  # the operand and the result
    square = f"tensor<{size}x{size}xbf16>"
    product = (
        f"module {{ func.func public @main(%x: {square}, %y: {square}) -> {square} {{ %0 = stablehlo.dot_general %x, %y,"
        f" contracting_dims = [1] x [0] : ({square}, {square}) -> {square} return %0 : {square} }} }}"
    )
    costs = pjrt.compile_ahead(product, target, options=FAST).costs
    assert costs["flops"] / costs["optimal_seconds"] == pytest.approx(known.flops("bfloat16"), rel=0.01)
    costs = pjrt.compile_ahead(doubled(2**21), target, options=FAST).costs
    assert costs["bytes accessed"] / costs["optimal_seconds"] == pytest.approx(known.bandwidth, rel=0.01)


def test_a_kernel_that_does_not_fit_in_vmem_is_told_with_its_sizes() -> None:
    with pytest.raises(OutOfMemoryError, match=r"256\.00 MiB of VMEM, and the device has 128\.00 MiB") as caught:
        pjrt.compile_ahead(lowered("tpu-v6e", twice, 8192, 8192), "tpu-v6e", options=FAST)
    assert caught.value.where is not None
    assert Path(caught.value.where).read_text().startswith("module")


def test_what_the_compiler_does_not_take_is_a_compile_error() -> None:
    wrong = doubled(8).replace(
        "return %0", "%1 = stablehlo.custom_call @nobody(%0) : (tensor<8x128xf32>) -> tensor<8x128xf32> return %1"
    )
    with pytest.raises(CompileError, match="nobody"):
        pjrt.compile_ahead(wrong, "tpu-v6e", options=FAST)
    with pytest.raises(CompileError, match="expects different type"):
        pjrt.compile_ahead(doubled(8).replace("8x128xf32> return", "9x128xf32> return"), "tpu-v6e")


def test_topologies_of_other_sizes() -> None:
    assert pjrt.compile_ahead(doubled(8), "tpu-v6e:1x1", options=FAST).memory.arguments == 4096
    with pytest.raises(UnsupportedError, match="no topology v6e:3x3"):
        pjrt.compile_ahead(doubled(8), "tpu-v6e:3x3", options=FAST)


def test_without_libtpu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *others: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UnsupportedError, match=r"pip install 'libtpu==0\.0\.42"):
        pjrt.compile_ahead(doubled(8), "tpu-v5e:4x8")


@pytest.mark.parametrize(
    ("target", "why"), [("cuda", "no CUDA plugin"), ("tpu-v6e", "no tpu device"), ("tpu-7x", "lower-model --target")]
)
def test_a_device_that_is_not_here_is_refused(target: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        pjrt.compile(doubled(8), target)
    assert not pjrt.is_here(target)


def test_cuda_is_not_compiled_ahead() -> None:
    with pytest.raises(UnsupportedError, match="cuda is compiled on a machine that has one"):
        pjrt.compile_ahead(doubled(8), "cuda")


def test_several_processes_compile_at_once_and_print_nothing() -> None:
    code = f"from fxhlo.runtime.core import pjrt; import sys\nprint(pjrt.build({doubled(8)!r}, sys.argv[1]).memory.arguments)"
    started = [
        subprocess.Popen([sys.executable, "-P", "-c", code, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("tpu-v5e", "tpu-v6e", "tpu-v6e")
    ]  # fmt: skip
    assert [one.communicate() for one in started] == [("4096\n", "")] * 3


def test_a_bundle_keeps_the_executable_for_the_machine_that_has_the_tpu(tmp_path: Path) -> None:
    into = mlir.context()
    module = mlir.parse(doubled(8), into)
    compiled = pjrt.build(mlir.portable(module), "tpu-v6e", options=FAST)
    signature = Signature((Argument("x", "input", (8, 128), "float32"),), (Result("y", (8, 128), "float32"),))
    with Bundle.create(tmp_path / "bundle") as writer:
        writer.add_entry("main", mlir.portable(module), signature)
        writer.add_target("main", "tpu-v6e", module=mlir.bytecode(module), executable=compiled, options=FAST)
    bundle = Bundle.open(tmp_path / "bundle")
    (stored,) = (tmp_path / "bundle" / "executables").iterdir()
    assert stored.read_bytes() == compiled.serialize()
    with pytest.raises(UnsupportedError, match="no tpu device"):
        bundle.executable("main", "tpu-v6e")


def test_a_lowered_module_compiles_ahead() -> None:
    import torch

    import fxhlo

    module = fxhlo.lower(torch.nn.Linear(256, 128), (torch.zeros(8, 256),), target="tpu-7x")
    compiled = module.compile_ahead()
    assert compiled.memory.arguments >= (8 * 256 + 128 * 256 + 128) * 4
    assert compiled.costs["flops"] >= 2 * 8 * 128 * 256
    with pytest.raises(UnsupportedError, match="compiled without one by lower-model --target"):
        module.compile()


def test_without_a_tpu_lowering_starts_no_plugin() -> None:
    code = (
        "import torch, fxhlo\n"
        "module = fxhlo.lower(torch.nn.Linear(256, 128), (torch.zeros(8, 256),), target='tpu-v6e')\n"
        "print(len(module.legalized().bytecode) > 0)\n"
        "from jax._src.xla_bridge import backends\n"
        "print(sorted(backends()))"
    )
    done = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["True", "['cpu']"]
    assert "libtpu" not in done.stderr
