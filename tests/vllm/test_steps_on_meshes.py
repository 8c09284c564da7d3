"""How vLLM's layers lie on a mesh, what no mesh divides, where --tensor-parallel-size goes, and steps of tiny models on meshes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models_on_meshes import MODELS, MORE
from written import SIZES, configured

from fxhlo.passes.cache_groups import CacheGroup
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.mesh import Mesh
from fxhlo.runtime.core.sharding import Part, Sharding
from fxhlo.runtime.vllm import compat
from fxhlo.runtime.vllm.layers import catalog
from fxhlo.runtime.vllm.layers.kind import Devices
from fxhlo.runtime.vllm.meshes import check_groups, mesh_for, plan_of
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.parallel import (
    all_devices_of,
    context_of,
    devices_of,
    experts_apart,
    hosts_of,
    of_worker,
    requests_of,
    stages_of,
    take_over,
)
from fxhlo.runtime.vllm.states.paged_kv import PagedKV

LAYERS = 2
ALL, KV = ("kv", "rep"), ("kv",)


@cache
def found(*models: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = Path(__file__).parent / "models_on_meshes.py"
    said = subprocess.run(
        [sys.executable, script, *models], capture_output=True, text=True, env=environment, check=False
    )
    assert said.returncode == 0, said.stderr[-5000:]
    answer: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("model", MODELS)
def test_a_step_on_a_mesh_is_a_step_on_one_device(model: str) -> None:
    steps = found(*MODELS)[model]
    assert list(steps) == [str(devices) for devices in MODELS[model][2]]
    assert all(step["tokens"] for step in steps.values()), steps
    assert all(step["differ"] < 2e-3 for step in steps.values()), steps


@pytest.mark.conformance
@pytest.mark.parametrize("model", MORE)
def test_a_step_of_other_models_on_a_mesh(model: str) -> None:
    steps = found(*MORE)[model]
    assert list(steps) == [str(devices) for devices in MORE[model][2]]
    assert all(step["tokens"] and step["differ"] < 2e-3 for step in steps.values()), steps


SUMS = {"granite_hybrid": 1, "context_window": 4, "requests": 2, "requests_latent": 2}
"""Sums besides those of a layer: of a norm over the channels of all devices; the highest scores and the parts of a context that devices share;
the rows of the devices' own requests."""


@pytest.mark.parametrize("model", MODELS)
def test_a_layer_takes_two_sums_over_the_devices_and_nothing_else(model: str) -> None:
    """And one for the embedding; of the two gathers a step runs one: of the logits, or, greedy, of each device's best."""
    layers = MODELS[model][1].get("num_hidden_layers", LAYERS)
    sums = 2 * layers + 1 + SUMS.get(model, 0)
    # queries of all devices of the same heads; those of latents in their two parts
    shared = {"context_window": 1, "requests": 1, "requests_latent": 2}
    gathers = 0 if model == "bert" else 2 + layers * shared.get(model, 0)  # BERT samples nothing
    expected = {"all-reduce": sums, **({"all-gather": gathers} if gathers else {})}
    steps = found(*MODELS)[model]
    assert [step["collectives"] for step in steps.values()] == [expected] * len(steps)


def built(folder: Path, **sizes: Any) -> tuple[Any, Any, Any]:
    configured("LlamaConfig", SIZES | {"num_key_value_heads": 2, "num_attention_heads": 8} | sizes, folder)
    config = compat.engine_config(str(folder), dtype="float32", max_model_len=64, max_num_seqs=2)
    model = build_model(config, weights=False)
    layers = compat.layers_of(config)
    return model, layers, catalog.states(layers, 16)


def test_each_kind_of_layer_lies_as_the_table_in_the_docs_says(tmp_path: Path) -> None:
    plan = plan_of(*built(tmp_path), 8)
    assert str(plan.mesh) == "kv=2, rep=4"
    layer = "model.layers.0"
    column, row = Sharding((ALL, ())), Sharding(((), ALL))
    qkv = plan.weights[f"{layer}.self_attn.qkv_proj.weight"]
    assert qkv.sharding == column
    assert qkv.parts == (Part(64, ALL), Part(16, KV), Part(16, KV))
    assert plan.weights[f"{layer}.mlp.gate_up_proj.weight"].parts == (Part(128, ALL), Part(128, ALL))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert plan.weights[f"{layer}.{name}.weight"].sharding == row
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert plan.weights[name].sharding == column
    assert "model.norm.weight" not in plan.weights
    assert {split.sharding for split in plan.states.values()} == {Sharding(((), (), KV, ()))}
    assert {plan.copies(name) for name in plan.states} == {4}
    assert plan.copies("lm_head.weight") == 1 and plan.copies("model.norm.weight") == 8


def test_sizes_that_the_devices_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"8 devices do not divide model.layers.0.mlp.gate_up_proj.weight"):
        plan_of(*built(tmp_path, intermediate_size=132), 8)


def layers(*heads: int) -> dict[str, Any]:
    return {str(index): SimpleNamespace(num_kv_heads=count) for index, count in enumerate(heads)}


@pytest.mark.parametrize(
    ("heads", "devices", "mesh"),
    [
        ((8, 8), 4, "model=4"), ((8, 4), 4, "model=4"), ((2, 2), 8, "kv=2, rep=4"), ((1,), 4, "kv=1, rep=4"),
        ((8, 2), 4, "kv=2, rep=2"), ((), 2, "model=2"), ((2,), 1, "one device"),
    ],
)  # fmt: skip
def test_the_mesh_follows_from_the_heads_of_keys(heads: tuple[int, ...], devices: int, mesh: str) -> None:
    assert str(mesh_for(devices, layers(*heads))) == mesh


@pytest.mark.parametrize(("heads", "devices"), [((6,), 4), ((4, 2), 8), ((3,), 2)])
def test_heads_that_no_mesh_divides_are_refused(heads: tuple[int, ...], devices: int) -> None:
    with pytest.raises(UnsupportedError, match="do not divide the model's heads of keys") as caught:
        mesh_for(devices, layers(*heads))
    assert "--tensor-parallel-size" in str(caught.value.next_step)


def test_heads_of_queries_that_the_devices_do_not_divide_are_refused() -> None:
    """Though they divide the columns of their weight: 6 heads of 16 on 4 devices."""
    six = {"0": SimpleNamespace(num_heads=6, num_kv_heads=1)}
    with pytest.raises(UnsupportedError, match=r"4 devices do not divide the model's heads \(6\)") as caught:
        mesh_for(4, six)
    assert "--tensor-parallel-size that divides 6" in str(caught.value.next_step)


def test_groups_of_heads_that_the_devices_cut_apart_are_refused() -> None:
    """Three groups of four heads on two devices: the second group would be on both."""
    devices = Devices(Mesh((("model", 2),)))
    assert (devices.sharing(4, 12), devices.sharing(1, 12)) == (("model",), ())
    with pytest.raises(UnsupportedError, match="2 devices have 6 of 12 heads each, and 4 heads share one of 3 groups"):
        devices.sharing(3, 12)


@pytest.mark.parametrize(
    ("heads", "context", "mesh"),
    [(2, 2, "kv=2, rep=2, context=2"), (2, 4, "kv=2, context=4"), (1, 8, "kv=1, context=8")],
)
def test_devices_of_the_same_heads_share_a_context(heads: int, context: int, mesh: str) -> None:
    assert str(mesh_for(8, layers(heads), context)) == mesh


@pytest.mark.parametrize(
    ("heads", "context", "said"), [(8, 2, "no cache to share"), (2, 3, "4 of 8 devices .* 3 do not divide")]
)
def test_a_context_that_the_copies_cannot_share_is_refused(heads: int, context: int, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        mesh_for(8, layers(heads), context)
    assert "--decode-context-parallel-size" in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("heads", "devices", "requests", "mesh"),
    [
        ((2,), 4, 2, "model=2, requests=2"), ((8,), 4, 4, "requests=4"), ((2,), 8, 2, "kv=2, rep=2, requests=2"),
        ((), 8, 2, "model=4, requests=2"),
    ],
)  # fmt: skip
def test_groups_of_devices_have_the_caches_of_other_requests(
    heads: tuple[int, ...], devices: int, requests: int, mesh: str
) -> None:
    assert str(mesh_for(devices, layers(*heads), requests=requests)) == mesh


def test_caches_lie_by_requests_and_heads_of_keys_by_the_devices_of_a_group(tmp_path: Path) -> None:
    plan = plan_of(*built(tmp_path), 8, requests=4)
    assert str(plan.mesh) == "model=2, requests=4"
    assert {split.sharding for split in plan.states.values()} == {Sharding((("requests",), (), ("model",), ()))}
    assert {plan.copies(name) for name in plan.states} == {1}
    assert plan.blocks(10) == 12
    qkv, every = plan.weights["model.layers.0.self_attn.qkv_proj.weight"], ("model", "requests")
    assert qkv.parts == (Part(64, every), Part(16, ("model",)), Part(16, ("model",)))


def test_requests_cannot_be_on_other_devices_where_they_keep_nothing(tmp_path: Path) -> None:
    model, found, _ = built(tmp_path)
    with pytest.raises(UnsupportedError, match="no KV cache whose requests could be on other devices"):
        plan_of(model, found, (), 8, requests=2)


def test_caches_that_are_viewed_in_blocks_of_other_shapes_are_refused() -> None:
    def cache(name: str, heads: int) -> PagedKV:
        return PagedKV.of(name, block_size=16, kv_heads=heads, head_size=8, dtype=torch.float32)

    apart = (CacheGroup(("a",), 16, 4), CacheGroup(("b",), 16, 4))
    check_groups((cache("a", 4), cache("b", 4)), apart)
    check_groups((cache("a", 4), cache("b", 2)), (CacheGroup(("a", "b"), 16, 4),))
    with pytest.raises(UnsupportedError, match="caches that b and a share in blocks of different shapes") as caught:
        check_groups((cache("a", 4), cache("b", 2)), apart)
    assert "--disable-hybrid-kv-cache-manager" in str(caught.value.next_step)


def test_a_kind_of_layer_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = replace(catalog.KINDS[0], is_one=lambda layer: True, splits=None)
    monkeypatch.setattr(catalog, "KINDS", (kind,))
    with pytest.raises(UnsupportedError, match=rf"does not split {kind.name} \(layers.0\) over several devices yet"):
        plan_of(torch.nn.Module(), {"layers.0": SimpleNamespace()}, (), 2)


def parallel_of(**sizes: Any) -> Any:
    one = {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "nnodes": 1,
        "enable_expert_parallel": False,
        "decode_context_parallel_size": 1,
        "world_size": 1,
    }
    parallel = SimpleNamespace(**(one | sizes))
    return SimpleNamespace(parallel_config=parallel, additional_config={"other": 1}, model_config=None)


def test_vllm_sees_a_world_of_one() -> None:
    config = parallel_of(tensor_parallel_size=4, world_size=4, decode_context_parallel_size=2)
    for _ in range(2):
        take_over(config)
        parallel = config.parallel_config
        assert (parallel.tensor_parallel_size, parallel.world_size, devices_of(config)) == (1, 1, 4)
        assert (parallel.decode_context_parallel_size, context_of(config)) == (1, 2)
        assert config.additional_config["other"] == 1
    assert not experts_apart(config)
    config = parallel_of(tensor_parallel_size=4, enable_expert_parallel=True)
    take_over(config)
    assert experts_apart(config)
    plain = parallel_of()
    take_over(plain)
    assert (plain.additional_config, devices_of(plain)) == ({"other": 1}, 1)


def test_groups_of_requests_divide_the_devices() -> None:
    config = parallel_of(tensor_parallel_size=4, world_size=4)
    config.additional_config["fxhlo"] = {"attention_data_parallel": 2}
    for _ in range(2):
        take_over(config)
        assert (devices_of(config), requests_of(config)) == (4, 2)
    for devices in (1, 3):
        config = parallel_of(tensor_parallel_size=devices, world_size=devices)
        config.additional_config["fxhlo"] = {"attention_data_parallel": 2}
        with pytest.raises(
            UnsupportedError, match=f"attention_data_parallel is 2, and {devices} devices? (is|are) not divided by it"
        ) as caught:
            take_over(config)
        assert "--tensor-parallel-size" in str(caught.value.next_step)
    for option, more in (
        ("--pipeline-parallel-size", {"pipeline_parallel_size": 2}),
        ("--nnodes", {"nnodes": 2}),
        ("--decode-context-parallel-size", {"decode_context_parallel_size": 2}),
    ):
        config = parallel_of(tensor_parallel_size=4, world_size=4, **more)
        config.additional_config["fxhlo"] = {"attention_data_parallel": 2}
        with pytest.raises(
            UnsupportedError, match=f"does not go with {option}: it shares out the whole KV cache"
        ) as caught:
            take_over(config)
        assert option in str(caught.value.next_step)


def test_vllm_sees_a_world_of_as_many_as_there_are_hosts() -> None:
    """Its `mp` executor starts a worker for each, and takes the tensor parallel size for their number; a worker's model is of one device."""
    config = parallel_of(tensor_parallel_size=8, nnodes=2, world_size=8)
    for _ in range(2):
        take_over(config)
        parallel = config.parallel_config
        assert (parallel.tensor_parallel_size, parallel.world_size) == (2, 2)
        assert (devices_of(config), hosts_of(config), all_devices_of(config)) == (8, 2, 8)
    own = of_worker(config)
    assert (own.parallel_config.tensor_parallel_size, own.parallel_config.world_size) == (1, 2)
    assert config.parallel_config.tensor_parallel_size == 2


def test_vllm_knows_of_stages_and_the_worker_has_all() -> None:
    config = parallel_of(tensor_parallel_size=2, pipeline_parallel_size=3, world_size=6)
    for _ in range(2):
        take_over(config)
        parallel = config.parallel_config
        assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.world_size) == (1, 3, 1)
        assert (devices_of(config), stages_of(config), all_devices_of(config)) == (2, 3, 6)
    assert of_worker(config).parallel_config.pipeline_parallel_size == 1
