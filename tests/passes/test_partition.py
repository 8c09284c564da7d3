"""Partitioned programs compute what they do on one device, with two all-reduces a layer and no other collective."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from meshes_alone import WINDOWS

from fxhlo.kernels.catalog import kernels, register_torch_ops
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.module import HloModule
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.hlo.partition import partition
from fxhlo.passes.hlo.plan import Plan
from fxhlo.passes.hlo.propagate import factors
from fxhlo.passes.mlir import bytecode, text
from fxhlo.passes.pipeline import run
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.mesh import Mesh
from fxhlo.runtime.core.sharding import Part, Sharding, Split

MESH = Mesh((("model", 2),))
FUSED = Split(Sharding((("model",), ())), 0, (Part(4, ("model",)), Part(4, ("model",))))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return alone({})


@pytest.fixture(scope="module")
def over_tokens() -> dict[str, Any]:
    """Without native kernels, so that products are XLA's, which splits the tokens between them."""
    return alone({"FXHLO_NATIVE": "0", "ROWS": "2"})


def alone(further: dict[str, str]) -> dict[str, Any]:
    flags = {"PYTHONSAFEPATH": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    environment = {**os.environ, **flags, **further}
    script = Path(__file__).parent / "meshes_alone.py"
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr[-5000:]
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


@pytest.mark.parametrize("devices", ["2", "4"])
def test_a_step_on_a_mesh_is_a_step_on_one_device(found: dict[str, Any], devices: str) -> None:
    """On four devices the two heads of keys are on two devices each."""
    step = found[devices]
    assert step["tokens"] == found["1"]["tokens"]
    assert step["differ"] < 1e-5
    assert step["greedy"], "a greedy step, which gathers no logits, gives other tokens"
    assert step["stored"], "the executable that was stored and loaded again computes something else"
    assert step["in place"], "a cache was copied"


@pytest.mark.parametrize("devices", ["2", "4"])
def test_a_step_whose_tokens_are_split_between_products_is_a_step_on_one_device(
    over_tokens: dict[str, Any], devices: str
) -> None:
    step = over_tokens[devices]
    assert step["tokens"] == over_tokens["1"]["tokens"]
    assert step["differ"] < 1e-5
    assert step["collectives"].keys() & {"all-gather", "reduce-scatter"}


@pytest.mark.parametrize("devices", ["2", "4"])
def test_a_layer_takes_two_sums_over_the_devices_and_nothing_else(found: dict[str, Any], devices: str) -> None:
    """Besides one for the embedding; of the two gathers a step runs one: of the logits, or of each device's best."""
    assert found[devices]["collectives"] == {"all-reduce": 2 * len(WINDOWS) + 1, "all-gather": 2}


@pytest.mark.parametrize("layer", ["bias", "units", "experts"])
@pytest.mark.parametrize("devices", ["2", "4"])
def test_layers_of_one_kind_are_as_in_torch(found: dict[str, Any], devices: str, layer: str) -> None:
    """A bias is added once to a sum over the devices; experts are split by their units, and as a whole. Each comes from a bundle."""
    assert found[devices]["layers"][layer] < 1e-5


def product(function: Any = torch.nn.functional.linear) -> HloModule:
    register_torch_ops()

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(8, 6))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = function(values, self.weight)
            return result

    model = Product()
    inputs = [Input("values", ("tokens", 6), torch.float32)]
    return emit(run((Linear(),), capture_callable(model, model, inputs, {"tokens": (1, 64)})), {"tokens": 3})


def test_a_fused_weight_that_another_op_reads_is_refused() -> None:
    module = product(lambda values, weight: values @ weight.T + weight.sum())
    with pytest.raises(UnsupportedError, match="weight has several matrices and is read by stablehlo") as caught:
        partition(bytecode(module.module), module.signature, Plan(MESH, {"weight": FUSED}), "cpu")
    assert "--tensor-parallel-size" in str(caught.value.next_step)


def test_a_kernel_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = product()
    monkeypatch.setitem(kernels(), "fxhlo.linear", replace(kernels()["fxhlo.linear"], partition=None))
    with pytest.raises(UnsupportedError, match=r"fxhlo.linear has no partition rule"):
        partition(bytecode(module.module), module.signature, Plan(MESH, {"weight": FUSED}), "cpu")


def test_the_result_of_a_fused_product_is_given_in_the_models_order() -> None:
    """Nothing slices it into its matrices here: they are gathered and joined."""
    module = product()
    made = partition(bytecode(module.module), module.signature, Plan(MESH, {"weight": FUSED}), "cpu")
    assert "stablehlo.concatenate" in text(made.module)
    assert made.signature.results[0].sharding.replicated
    assert made.signature.argument("weight").sharding == FUSED.sharding


def test_products_are_left_to_xla_where_the_target_has_no_kernel_for_them() -> None:
    module = product()
    column = Plan(MESH, {"weight": Split(FUSED.sharding)})
    made = text(partition(bytecode(module.module), module.signature, column, "tpu-v6e").module)
    assert "manual_computation" not in made and "stablehlo.dot_general" in made and "sharding_constraint" in made


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ((6, 8), (6, 2, 4), [([0], [0]), ([1], [1, 2])]),
        ((6, 2, 4), (6, 8), [([0], [0]), ([1, 2], [1])]),
        ((6, 8), (3, 2, 8), [([0], [0, 1]), ([1], [2])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((5,), (5, 1), [([0], [0]), ([], [1])]),
        ((1, 5), (5,), [([0, 1], [0])]),
    ],
)
def test_the_dimensions_of_a_reshape_that_stand_for_each_other(before: Any, after: Any, runs: Any) -> None:
    assert factors(before, after) == runs
