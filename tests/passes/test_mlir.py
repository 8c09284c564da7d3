"""The few operations on whole modules: functions of another module adopted, and the portable form."""

import pytest

from fxhlo.passes import mlir
from fxhlo.passes.hlo.legalize import legalize
from fxhlo.runtime.core import pjrt

INTO = "func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }"
CASES = {
    "a call": (
        """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
             %0 = call @helper(%a) : (tensor<2xf32>) -> tensor<2xf32>
             return %0 : tensor<2xf32> }
           func.func private @helper(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }""",
        {"p__main", "p__helper"},
        ["call @p__helper("],
    ),
    "a name in quotes": (
        """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
             %0 = call @"f<lambda> of x"(%a) : (tensor<2xf32>) -> tensor<2xf32>
             return %0 : tensor<2xf32> }
           func.func private @"f<lambda> of x"(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }""",
        {"p__main", "p__f<lambda> of x"},
        ['call @"p__f<lambda> of x"('],
    ),
    "a name inside of a string": (
        """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
             %0 = stablehlo.custom_call @other(%a) {backend_config = "sends @main to @helper"} : (tensor<2xf32>) -> tensor<2xf32>
             return %0 : tensor<2xf32> }
           func.func private @helper(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }""",
        {"p__main", "p__helper"},
        ['"sends @main to @helper"', "@other("],
    ),
    "a composite's decomposition": (
        """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
             %0 = stablehlo.composite "x.y" %a {decomposition = @main.impl} : (tensor<2xf32>) -> tensor<2xf32>
             return %0 : tensor<2xf32> }
           func.func private @main.impl(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }""",
        {"p__main", "p__main.impl"},
        ["decomposition = @p__main.impl"],
    ),
    "a name that begins with the prefix": (
        """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
             %0 = call @p__main(%a) : (tensor<2xf32>) -> tensor<2xf32>
             return %0 : tensor<2xf32> }
           func.func private @p__main(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }""",
        {"p__main", "p__p__main"},
        ["call @p__p__main("],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_adopted_functions_are_private_and_renamed_wherever_they_are_used(case):
    source, names, texts = CASES[case]
    module = mlir.parse(INTO, mlir.context())
    assert mlir.adopt(source, module, "p") == "p__main"
    functions = {mlir.ir.SymbolTable.get_symbol_name(op.operation).value: op for op in module.body.operations}
    assert functions.keys() == {"main"} | names
    for name in names:
        assert mlir.ir.SymbolTable.get_visibility(functions[name].operation).value == "private"
    assert module.operation.verify()
    for text in texts:
        assert text in str(module)


def test_the_portable_form_is_versioned_and_complete():
    text = """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
        %0 = stablehlo.tanh %a : tensor<2xf32> loc("model.py":7:3)
        return %0 : tensor<2xf32> }"""
    module = mlir.parse(text, mlir.context())
    data = mlir.portable(module)
    assert f"StableHLO_v{mlir.READABLE_SINCE}".encode() in data[:64]
    again = mlir.parse(data, mlir.context())
    assert mlir.text(again, locations=True) == mlir.text(module, locations=True)
    assert "model.py" in mlir.text(again, locations=True)


CHLO = """func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> {
    %0 = chlo.erf %a : tensor<2xf32> -> tensor<2xf32>
    return %0 : tensor<2xf32> }"""


def test_chlo_has_a_portable_form_that_xla_compiles_to_the_same():
    module = mlir.parse(CHLO, mlir.context())
    data = mlir.portable(module)
    assert f"StableHLO_v{mlir.READABLE_SINCE}".encode() in data[:64]
    assert pjrt.compile(data).text == pjrt.compile(mlir.bytecode(module)).text


def test_legalization_leaves_the_portable_form_of_chlo_to_xla():
    legalized = legalize(mlir.portable(mlir.parse(CHLO, mlir.context())), "cpu")
    assert legalized.decisions == ()
    assert "chlo.erf" in str(mlir.parse(legalized.bytecode, mlir.context()))
