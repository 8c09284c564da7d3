"""libtpu compiles a step that is split over four chips: kernels in regions, products XLA's own, tokens split between them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.emit.emit import emit
from fxhlo.passes.hlo.legalize import legalize
from fxhlo.passes.hlo.partition import partition
from fxhlo.passes.mlir import bytecode
from fxhlo.passes.pipeline import run
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.mesh import Mesh
from fxhlo.runtime.core.targets import Target
from fxhlo.tools.report.meshes import mesh_report

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import meshes_alone
import step_decoder


def test_a_step_on_two_heads_and_four_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    register_torch_ops()
    monkeypatch.setattr(step_decoder, "VOCABULARY", 64)  # which the devices divide
    model = step_decoder.Decoder([step_decoder.Layer(index, window) for index, window in enumerate((0, 5))])
    program = run(meshes_alone.PASSES, step_decoder.captured_of(model))
    module = emit(program, {"tokens": 64, "requests": 2, "num_blocks": 4})
    monkeypatch.setattr(meshes_alone, "WINDOWS", (0, 5))
    plan = replace(meshes_alone.plan(meshes_alone.MESHES[4]), rows=16)
    target = Target.parse("tpu-v6e:2x2")
    made = partition(bytecode(module.module), module.signature, plan, target)
    chosen = {decision.kernel.removeprefix("fxhlo."): decision.implementation for decision in made.decisions}
    assert chosen["linear"] is None and chosen["sample"] == "pallas"
    compiled = pjrt.compile_ahead(legalize(bytecode(made.module), target).bytecode, target, mesh=plan.mesh)
    report = mesh_report("step", made.signature, target, compiled)
    whole = sum(argument.nbytes for argument in made.signature.arguments)
    assert report.weights + report.caches + report.inputs < whole / 2
    assert {one.kind for one in report.collectives} <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert report.link_seconds is not None and report.link_seconds > 0


def test_a_part_of_a_topology_is_refused_before_a_model_is_captured() -> None:
    """As libtpu itself decides, by a program that it compiles at once: stages of a pipeline may be parts."""
    for name, devices, first in (("tpu-v6e:2x2", 4, 0), ("tpu-v6e:2x2", 2, 2), ("cpu", 64, 0)):
        pjrt.check_mesh(Target.parse(name), Mesh((("model", devices),), first))
    with pytest.raises(UnsupportedError, match="does not compile for 4 of 16 devices, which are a part of") as caught:
        pjrt.check_mesh(Target.parse("tpu-v6e:4x4"), Mesh((("model", 4),)))
    assert "name a topology of 4 devices, as tpu-v6e:..." in str(caught.value)
    with pytest.raises(UnsupportedError, match="has only 4 devices, not 8"):
        pjrt.check_mesh(Target.parse("tpu-v6e:2x2"), Mesh((("model", 8),)))
