"""Weights that are streamed to a device: the same values as on the host, whatever kind of parameter, and little memory meanwhile."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_device import add_device
from safetensors.torch import load_file, save_file
from streamed_load import write
from test_loading import checkpoint
from torch import nn
from written import SIZES, written

from fxhlo.lowering.lowered import as_numpy
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.core.signature import Argument
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.folder import ModelError
from fxhlo.runtime.vllm.model import build_model, weight_bytes
from fxhlo.runtime.vllm.owned import Owned
from fxhlo.runtime.vllm.places import Places
from fxhlo.runtime.vllm.stages import Stages
from fxhlo.runtime.vllm.streaming import Stream

LATENT = {
    **SIZES, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "q_lora_rank": None,
    "first_k_dense_replace": 2, "n_routed_experts": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
EXPERTS = {**SIZES, "num_local_experts": 4}
MAMBA = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "expand": 2, "conv_kernel": 4, "n_groups": 1,
    "num_heads": 4, "head_dim": 16, "tie_word_embeddings": False,
}  # fmt: skip


def model_of(kind: str, folder: Path) -> Path:
    """A checkpoint with random weights. kind: of the parameters that it is about."""
    if kind == "experts":
        written("MixtralConfig", EXPERTS, folder)
    elif kind == "made of others":  # vLLM makes the absorbed matrices of kv_b_proj after loading, and drops it
        written("DeepseekV2Config", LATENT, folder, n_routed_experts=0)
    elif kind == "seen by a buffer":  # vLLM's Mamba 2 takes the convolution's weight by a view of it
        written("Mamba2Config", MAMBA, folder)
    elif kind == "tied":
        checkpoint(folder, "Qwen2ForCausalLM", tie_word_embeddings=True, num_hidden_layers=2)
    elif kind == "stored beside tied":  # vLLM compares the two after loading
        model_of("tied", folder)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    else:
        checkpoint(folder, {"fused": "LlamaForCausalLM", "transposed": "GPT2LMHeadModel"}[kind])
    return folder


def config_of(folder: Path, load_format: str = "auto", dtype: str = "float32") -> Any:
    config = engine_config(str(folder), dtype=dtype, max_model_len=64, max_num_seqs=4)
    config.load_config.load_format = load_format
    return config


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(Target.parse(add_device(monkeypatch)))


def streamed(config: Any, placement: Places) -> tuple[nn.Module, dict[str, pjrt.Buffer], Stream]:
    stream = placement.stream()
    model = build_model(config, weights=True, stream=stream)
    return model, stream.finish(model), stream


@pytest.mark.parametrize(
    "kind", ["fused", "transposed", "tied", "stored beside tied", "experts", "made of others", "seen by a buffer"]
)
def test_each_kind_of_parameter_is_what_the_host_has(kind: str, tmp_path: Path, far: Places) -> None:
    config = config_of(model_of(kind, tmp_path))
    on_host = build_model(config, weights=True)
    expected = {name: as_numpy(value).copy() for name, value in on_host.named_parameters()}
    model, placed, stream = streamed(config, far)
    for (name, buffer), one in zip(model.named_buffers(), on_host.buffers(), strict=True):
        assert torch.equal(buffer, one), name
    assert placed.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, buffer in placed.items():
        assert np.array_equal(np.asarray(buffer), expected[name]), name
        assert buffer.devices() == {far.device.raw}
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert (stream.held, weight_bytes(model)) == (0, sum(one.nbytes for one in expected.values()))


@pytest.mark.parametrize("kind", ["tied", "made of others"])
def test_a_stage_gets_the_weights_of_its_own_layers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is in no layer with the layers beside it; another stage that reads it, too, gets a copy, and takes it where it alone does."""
    config = config_of(model_of(kind, tmp_path))
    expected = {name: as_numpy(value).copy() for name, value in build_model(config, weights=True).named_parameters()}
    shapes = build_model(config, weights=False)
    target = Target.parse(add_device(monkeypatch, count=2))
    places = Places(target, stages=Stages.of(shapes, 2, 2), model=shapes)
    model, placed, stream = streamed(config, places)
    devices = [place.device.raw for place in places.each]
    assert placed.keys() == expected.keys() and stream.held == 0
    for name, buffer in placed.items():
        assert np.array_equal(np.asarray(buffer), expected[name]), name
        layer = re.search(r"layers\.(\d)\.", name)
        stage = int(layer.group(1)) if layer else int("embed" not in name)
        assert buffer.devices() == {devices[stage]}, name

    def argument(name: str) -> Argument:
        return Argument(name, "weight", expected[name].shape, expected[name].dtype.name)

    embedding, early, late = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"
    places.take(placed)
    read = [[argument(embedding)], [argument(name) for name in (embedding, early, late)]]
    first, last = places.weights(read, model)
    assert (list(first), list(last)) == ([embedding], [embedding, early, late])
    for device, found in zip(devices, (first, last), strict=True):
        for name, buffer in found.items():
            assert buffer.devices() == {device} and np.array_equal(np.asarray(buffer), expected[name])
    assert places.first.streamed(early) is None, "the first stage keeps what it reads"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_are_streamed_too(dtype: str, tmp_path: Path, far: Places) -> None:
    config = config_of(model_of("fused", tmp_path), "dummy", dtype)
    torch.manual_seed(0)
    expected = dict(build_model(config, weights=True).named_parameters())
    torch.manual_seed(0)
    _, placed, stream = streamed(config, far)
    for name, buffer in placed.items():
        assert np.array_equal(np.asarray(buffer), as_numpy(expected[name])), name
    assert stream.peak < sum(buffer.nbytes for buffer in placed.values())


def test_a_tensor_that_is_missing_is_named(tmp_path: Path, far: Places) -> None:
    folder = model_of("fused", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensor of this model: model\.layers\.0\.self_attn\.k_proj\.weight"):
        streamed(config_of(folder), far)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 8), -1.0), requires_grad=False)
        self.weight.note = "mine"  # type: ignore[attr-defined]
        self.same = self.weight


def test_what_is_read_or_changed_after_it_has_gone(far: Places) -> None:
    model, stream = Small(), far.stream()
    values = torch.arange(32.0).reshape(4, 8)
    weight, storage = model.weight, model.weight.untyped_storage()
    with stream, torch.no_grad():
        stream.watch(model)
        weight[:2].copy_(values[:2])
        assert (storage.nbytes(), stream.held) == (128, 128)
        weight.data[2:].copy_(values[2:])
        assert (storage.nbytes(), stream.held) == (0, 0), "it has gone"
        assert torch.equal(weight, values) and storage.nbytes() == 0
        weight.mul_(2)
        assert storage.nbytes() == 0
        assert torch.equal(weight[3], 2 * values[3])
    placed = stream.finish(model)
    assert list(placed) == ["weight"] and np.array_equal(np.asarray(placed["weight"]), 2 * values.numpy())
    assert model.same is model.weight and model.weight.note == "mine" and model.weight.is_meta  # type: ignore[attr-defined]


class Kept:
    """A device array."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.values = values.copy()

    def block_until_ready(self) -> None:
        pass


def part_of(owned: Owned) -> tuple[Small, torch.Tensor, Stream]:
    """A model whose weight is -1 everywhere, its weight, and a stream for a host that holds this part of it."""
    model = Small()
    stream = Stream(Kept, lambda name, kept: kept.values, lambda name, shape: owned)
    stream.watch(model)
    return model, model.weight, stream


def test_what_other_hosts_hold_is_not_copied() -> None:
    """Through views of either dimension, of a single row, and of both dimensions as one, which is no rectangle."""
    values = torch.arange(32.0).reshape(4, 8)
    model, weight, stream = part_of(((slice(1, 3),), (slice(0, 8),)))
    with stream, torch.no_grad():
        weight[:2].copy_(values[:2])
        assert stream.read == 32
        weight.data.t()[:, 2].copy_(values[2])
        weight.data[3].copy_(values[3])
        assert (stream.read, stream.held) == (64, 0), "it has gone"
    right = values.clone()
    right[[0, 3]] = -1
    assert np.array_equal(stream.finish(model)["weight"].values, right.numpy())

    model, weight, stream = part_of(((slice(0, 4),), (slice(1, 3), slice(6, 7))))
    with stream, torch.no_grad():
        weight[:, :2].copy_(values[:, :2])
        weight[:, 2:].copy_(values[:, 2:])
    assert stream.read == 4 * 3 * 4
    right = torch.full((4, 8), -1.0)
    right[:, [1, 2, 6]] = values[:, [1, 2, 6]]
    assert np.array_equal(stream.finish(model)["weight"].values, right.numpy())

    model, weight, stream = part_of(((slice(1, 3),), (slice(0, 8),)))
    with stream, torch.no_grad():
        weight.data.view(-1).copy_(values.view(-1))
    assert stream.read == 128 and np.array_equal(stream.finish(model)["weight"].values, values.numpy())


def test_what_other_hosts_hold_is_copied_where_it_is_read() -> None:
    """Before all of a parameter is there, and where loading puts another tensor in its place."""
    values = torch.arange(32.0).reshape(4, 8)
    model, weight, stream = part_of(((slice(1, 3),), (slice(0, 8),)))
    with stream, torch.no_grad():
        weight[:3].copy_(values[:3])
        weight.data[0, :2].fill_(7)
        assert torch.equal(weight[0], torch.tensor([7.0, 7.0, *values[0, 2:]]))
        weight[3:].copy_(values[3:])
    right = values.clone()
    right[0, :2], right[3] = 7, -1
    assert np.array_equal(stream.finish(model)["weight"].values, right.numpy())

    model, weight, stream = part_of(((slice(1, 3),), (slice(0, 8),)))
    with stream, torch.no_grad():
        weight[:2].copy_(values[:2])
        weight.data = weight.data.t()
    assert np.array_equal(stream.finish(model)["weight"].values[:, :2], values.numpy().T[:, :2])


def test_a_parameter_that_loading_replaced(far: Places) -> None:
    model, stream = Small(), far.stream()
    with stream, torch.no_grad():
        stream.watch(model)
        model.weight.copy_(torch.arange(32.0).reshape(4, 8))
        model.weight.data = model.weight.data.t()
    placed = stream.finish(model)["weight"]
    assert np.array_equal(np.asarray(placed), np.arange(32.0, dtype=np.float32).reshape(4, 8).T)


def test_a_streamed_weight_is_compared_with_the_program(far: Places) -> None:
    far.take({"weight": far.device.put(np.zeros((2, 3), np.float32))})
    model = nn.Linear(3, 2, bias=False)
    ((found,),) = (one.values() for one in far.weights([[Argument("weight", "weight", (2, 3), "float32")]], model))
    assert found.devices() == {far.device.raw} and not np.asarray(found).any()
    with pytest.raises(FxhloError, match=r"the model's is float32\[2, 3\]"):
        far.weights([[Argument("weight", "weight", (3, 2), "float32")]], model)


def test_weights_that_a_part_on_the_host_reads_come_back(far: Places) -> None:
    """As a pooler's do, once the programs have taken theirs; what both read is on both sides."""
    model = nn.ModuleDict({"body": nn.Linear(3, 2, dtype=torch.bfloat16), "shared": Small(), "pooler": nn.Linear(2, 2)})
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model["pooler"].also = model["shared"].weight
    far.take(far.stream().finish(model))
    taken = ("body.weight", "body.bias", "shared.weight")
    far.weights([[Argument(name, "weight", values[name].shape, str(values[name].dtype)[6:]) for name in taken]], model)
    far.give_back(model, model["pooler"])
    assert model["body"].weight.is_meta and model["body"].bias.is_meta
    assert model["pooler"].also is model["shared"].weight and model["shared"].weight.note == "mine"
    for name in ("pooler.weight", "pooler.bias", "shared.weight"):
        assert torch.equal(model.get_parameter(name), values[name]), name


SMALL = ("12", "2048", "8192", "16", "16", "1024")
"""Twelve layers of 134 MB."""
OF_70B = ("4", "8192", "28672", "64", "8", "128256")
"""Four of Llama 3.1 70B's 80 layers, of 1.7 GB, with its embedding and head of 2.1 GB: what is held does not depend on their number, and 141 GB
take minutes to pass through."""


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [
        (SMALL, "4"),
        pytest.param(SMALL, "1", marks=pytest.mark.conformance),
        pytest.param(OF_70B, "8", marks=pytest.mark.conformance),
    ],
)
def test_the_host_holds_less_than_a_layer_more(sizes: tuple[str, ...], devices: str, tmp_path: Path) -> None:
    """From a file with holes, onto devices that drop what they get: memory grows by less than 1.2 layers, or embeddings where these are larger."""
    script = Path(__file__).with_name("streamed_load.py")
    command = [sys.executable, "-P", str(script), str(tmp_path), *sizes, devices]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"})
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    print(facts)
    assert facts["given"] == facts["weights"] > 5 * facts["largest"]
    assert facts["held"] < 1.2 * facts["largest"], facts
    assert facts["grown"] < 1.2 * facts["largest"], facts


def on_two_hosts(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What streamed_hosts.py prints on each."""
    script, environment = Path(__file__).with_name("streamed_hosts.py"), {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    commands = [[sys.executable, "-P", str(script), address, str(number), str(folder), kind] for number in range(2)]
    hosts = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for one in commands
    ]
    said = [one.communicate(timeout=600) for one in hosts]
    assert [one.returncode for one in hosts] == [0, 0], "".join(error[-3000:] for _, error in said)
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.conformance
@pytest.mark.parametrize("kind", ["stored beside tied", "made of others", "experts"])
def test_a_host_places_what_its_own_device_holds(kind: str, tmp_path: Path) -> None:
    """Some are read again once parts of them are on another host: a head that is compared, matrices that are made of others."""
    for facts in on_two_hosts(model_of(kind, tmp_path), "values"):
        assert facts["arrays"] == facts["expected"] and not facts["wrong"]


@pytest.mark.conformance
def test_a_host_holds_less_than_a_layer_beside_what_its_device_holds(tmp_path: Path) -> None:
    """The CPU's device is in the host's memory too: half of each weight."""
    facts = write(tmp_path, *map(int, SMALL))
    for host in on_two_hosts(tmp_path, "memory"):
        assert host["here"] == pytest.approx(facts["weights"] / 2, rel=0.01)
        assert host["read"] == pytest.approx(host["here"], rel=0.01), "what other hosts hold is not read"
        assert host["held"] < 1.2 * facts["largest"], host
        assert host["grown"] < host["here"] + 1.2 * facts["largest"], host
