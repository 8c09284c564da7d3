"""Legalization: which composites become kernels, which fall back and why; the result computes the same."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from step_decoder import captured

from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.lower import lower
from fxhlo.passes import mlir
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.fx.silu_and_mul import SiluAndMul
from fxhlo.passes.hlo import implementation
from fxhlo.passes.hlo import legalize as legalizing
from fxhlo.passes.hlo.legalize import LegalizeError, legalize
from fxhlo.passes.pipeline import run
from fxhlo.passes.program import Program
from fxhlo.runtime.core import native


class Product(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(7, 5).to(dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        once = torch.ops.fxhlo.linear(values, self.weight, None)
        return torch.ops.fxhlo.linear(values + 1, self.weight, None) + once


def lowered(dtype: torch.dtype = torch.float32) -> tuple[Product, torch.Tensor, object]:
    from fxhlo.kernels.catalog import register_torch_ops

    register_torch_ops()
    module, values = Product(dtype), torch.randn(3, 5).to(dtype)
    return module, values, lower(module, (values,))


def test_the_portable_module_has_composites_with_their_reference() -> None:
    _, _, module = lowered()
    assert module.text.count('stablehlo.composite "fxhlo.linear"') == 2
    assert module.text.count("func.func private @fxhlo_linear") == 1  # one body for both


def test_a_composite_becomes_the_targets_kernel() -> None:
    module, values, hlo = lowered()
    legalized = hlo.legalized()
    (decision,) = legalized.decisions
    assert (decision.kernel, decision.count) == ("fxhlo.linear", 2)
    if native.unavailable() is None:
        assert decision.implementation == "native"
        assert legalized.custom_calls == ("fxhlo_linear",)
    torch.testing.assert_close(torch.from_dlpack(hlo.compile()(values)[0]), module(values).detach())


def test_where_no_kernel_takes_it_the_reference_is_inlined_with_the_reason() -> None:
    module, values, hlo = lowered(torch.float64)
    legalized = hlo.legalized()
    (decision,) = legalized.decisions
    assert decision.implementation is None
    assert "operands are float64" in decision.reasons[0]
    assert legalized.custom_calls == ()
    torch.testing.assert_close(torch.from_dlpack(hlo.compile()(values)[0]), module(values).detach())


def test_another_family_has_no_cpu_kernel() -> None:
    _, _, hlo = lowered()
    (decision,) = legalize(mlir.bytecode(hlo.module), "cuda").decisions
    assert decision.implementation is None
    assert decision.reasons == ("cuda needs no kernel of its own for it: its compiler fuses the reference",)
    (decision,) = legalize(mlir.bytecode(hlo.module), "tpu-v6e").decisions
    assert (decision.implementation, decision.reasons) == (
        None,
        ("tpu needs no kernel of its own for it: its compiler fuses the reference",),
    )


def test_an_unknown_version_falls_back_to_the_reference_it_carries() -> None:
    _, _, hlo = lowered()
    text, found = re.subn(r"version = \d+", "version = 99", str(mlir.text(hlo.module)))
    assert found
    (decision,) = legalize(text.encode(), "cpu").decisions
    assert decision.implementation is None
    assert "version 99" in decision.reasons[0]


def test_a_kernel_that_fails_in_spite_of_its_promise_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from fxhlo.kernels import catalog
    from fxhlo.kernels.spec import Implementation
    from fxhlo.passes.hlo import legalize as module

    def broken(values: object, weight: object) -> object:
        raise ValueError("tile of 7 rows")

    kernels = dict(catalog.kernels())
    kernels["fxhlo.linear"] = replace(
        kernels["fxhlo.linear"], implementations=(Implementation("cpu", "broken", broken),)
    )
    _, _, hlo = lowered()
    monkeypatch.setattr(module, "kernels", lambda: kernels)
    with pytest.raises(LegalizeError, match="tile of 7 rows"):
        hlo.legalized()


def test_a_kernel_is_told_the_target_and_may_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections.abc import Mapping
    from dataclasses import replace

    from fxhlo.kernels import catalog
    from fxhlo.kernels.spec import Implementation, Operands
    from fxhlo.passes.hlo import legalize as module
    from fxhlo.runtime.core.targets import Target

    generations = []

    def tiled(values: object, weight: object, *, target: Target) -> object:
        from jax.experimental.pallas import tpu

        generations.append((target.generation, tpu.get_tpu_info().generation))  # Pallas knows it without a device
        return values @ weight.T  # type: ignore[operator, attr-defined]

    def supports(operands: Operands, attributes: Mapping[str, object], target: Target) -> str | None:
        if "bias" in operands.named or operands.named["values"] is not operands[0]:
            return "there is a bias"
        return None if target.generation >= 6 else f"generation {target.generation} has no such unit"

    kernels = dict(catalog.kernels())
    implementation = Implementation("tpu", "tiled", tiled, supports)
    kernels["fxhlo.linear"] = replace(kernels["fxhlo.linear"], implementations=(implementation,))
    monkeypatch.setattr(module, "kernels", lambda: kernels)
    bytecode = mlir.bytecode(lowered()[2].module)
    (taken,), (refused,) = (legalize(bytecode, name).decisions for name in ("tpu-v6e", "tpu-v5e"))
    assert (taken.implementation, generations) == ("tiled", [(6, 6)])
    assert (refused.implementation, refused.reasons) == (None, ("tiled: generation 5 has no such unit",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tpu_is_told_to_multiply_float32_in_full(dtype: torch.dtype) -> None:
    """It would round the operands to bfloat16 otherwise."""
    _, _, hlo = lowered(dtype)
    text = str(mlir.parse(legalize(hlo.bytecode, "tpu-v6e").bytecode, mlir.context()))
    assert "dot_general" in text
    assert ("HIGHEST" in text) == (dtype is torch.float32)


FOREIGN = """
module @m {
  func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.composite "odml.twice" %a {composite_attributes = {how = [1, 2]}, decomposition = @one} : (tensor<2xf32>) -> tensor<2xf32>
    %1 = stablehlo.composite "odml.twice" %0 {composite_attributes = {how = [1, 2]}, decomposition = @two} : (tensor<2xf32>) -> tensor<2xf32>
    return %1 : tensor<2xf32>
  }
  func.func private @one(%a: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.add %a, %a : tensor<2xf32>
    return %0 : tensor<2xf32>
  }
  func.func private @two(%a: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.multiply %a, %a : tensor<2xf32>
    return %0 : tensor<2xf32>
  }
  func.func private @never(%a: tensor<2xf32>) -> tensor<2xf32> {
    %0 = call @one(%a) : (tensor<2xf32>) -> tensor<2xf32>
    return %0 : tensor<2xf32>
  }
}
"""


def test_composites_of_another_front_end_keep_each_its_own_decomposition() -> None:
    legalized = legalize(FOREIGN.encode(), "cpu")
    made = str(mlir.parse(legalized.bytecode, mlir.context()))
    assert made.index("call @one") < made.index("call @two")
    assert "composite" not in made
    assert "@never" not in made, "a private function that nobody calls is erased"
    assert [decision.reasons for decision in legalized.decisions] == [
        ("this installation has no kernel odml.twice version 0",)
    ] * 2


@pytest.mark.parametrize("target", ["cpu", "tpu-v6e", "cuda"])
def test_a_module_without_references_becomes_the_same(target: str) -> None:
    """References are emitted for what no kernel serves, here everything on a GPU; the rest is only declared."""
    program = step_program()
    whole, short = (replace(emit(program, SIZES, references=given), target=target) for given in (True, False))
    assert len(mlir.text(short.module)) < len(mlir.text(whole.module))
    made = [one.legalized() for one in (whole, short)]
    assert made[0].bytecode == made[1].bytecode
    assert made[0].custom_calls == made[1].custom_calls
    assert short.text == whole.text  # where it is asked for, it is there


def test_implementations_are_lowered_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX lowers those of a module in one go; what one of them is does not depend on the others."""
    hlo = emit(step_program(), SIZES)
    monkeypatch.setattr(implementation, "_PREPARED", {})
    together = legalize(hlo.bytecode, "cpu")
    assert implementation._PREPARED
    monkeypatch.setattr(legalizing, "prepare", lambda calls: None)
    monkeypatch.setattr(implementation, "_PREPARED", {})
    alone = legalize(hlo.bytecode, "cpu")
    assert plain(together.bytecode) == plain(alone.bytecode)
    assert together.decisions == alone.decisions


def plain(bytecode: bytes) -> str:
    """The module's text without the attributes of results that JAX gives `main` alone."""
    text = re.sub(r' \{jax\.result_info = "result[^"]*"\}', "", mlir.text(mlir.parse(bytecode, mlir.context())))
    return re.sub(r"-> \((tensor<[^>]*>)\) \{", r"-> \1 {", text)


def step_program() -> Program:
    passes = (PagedAttention(), SelectRows(), SiluAndMul(), Linear(), Donate(), Canonicalize())
    return run(passes, captured()[1])


SIZES = {"tokens": 8, "requests": 2, "num_blocks": 16}
