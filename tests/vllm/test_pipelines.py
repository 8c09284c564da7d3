"""Which layers, weights and states a stage of a pipeline has."""

from __future__ import annotations

import pytest
from torch import nn

from fxhlo.passes.hlo.plan import Plan
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.mesh import Mesh
from fxhlo.runtime.vllm.stages import ONE_STAGE, Stages
from fxhlo.runtime.vllm.states.slots import SlotState

LAYERS = 5


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed = nn.Embedding(10, 4)
        self.model.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(LAYERS))
        self.model.adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


def test_layers_are_shared_out_as_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Stages.of(Decoder(), LAYERS, 2)
    assert found.to_json() == [0, 0, 1, 1, 1] or found.to_json() == [0, 0, 0, 1, 1]
    assert found.of_name("model.layers.0.weight") == 0
    assert found.of_name(f"model.layers.{LAYERS - 1}.attn") == 1
    assert found.of_name("model.adapters.1.weight") is None
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,4")
    assert Stages.of(Decoder(), LAYERS, 2).to_json() == [0, 1, 1, 1, 1]
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,3")
    with pytest.raises(UnsupportedError, match="does not match num_hidden_layers"):
        Stages.of(Decoder(), LAYERS, 2)
    assert Stages.of(Decoder(), LAYERS, 1) is ONE_STAGE


def test_what_cannot_be_cut() -> None:
    with pytest.raises(UnsupportedError, match="6 stages of a pipeline have no layer each: the model has 5"):
        Stages.of(Decoder(), LAYERS, 6)
    with pytest.raises(UnsupportedError, match="Decoder has no list of its 7 layers"):
        Stages.of(Decoder(), 7, 2)


def test_what_the_largest_stage_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,4")
    stages, model = Stages.of(Decoder(), LAYERS, 2), Decoder()
    layer, others = 4 * 4 * 4, 10 * 4 * 4 + 3 * (16 + 4) * 4
    assert stages.weights(model, lambda name, one: one.nbytes) == 4 * layer + others
    states = [
        SlotState(layer=f"model.layers.{index}.mixer", name=f"state.{index}", shape=("num_slots", 2), dtype="float32")
        for index in range(LAYERS)
    ]
    assert stages.share(states, {"num_slots": 3}) == 4 / 5
    assert ONE_STAGE.share([], {}) == 1.0


def test_stages_lie_on_devices_of_their_own() -> None:
    plan = Plan(Mesh((("model", 2),)))
    stages = Stages(3, {f"layers.{index}": index for index in range(3)})
    assert [one.mesh.first for one in stages.plans(plan)] == [0, 2, 4]
    assert all(one.mesh.axes == plan.mesh.axes for one in stages.plans(plan))
    for one in stages.plans(plan):
        assert Mesh.from_json(one.mesh.to_json()) == one.mesh
