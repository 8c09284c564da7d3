"""The small decoder on 1, 2 and 4 of the CPU's devices, in a process of its own: their number is fixed when the first is used.

Prints one JSON object: by mesh size, the largest difference of each result from one device's, the collectives of the compiled module
by kind, whether a stored executable gives the same, and the addresses of the caches before and after a step.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import step_decoder
from step_decoder import HEAD_SIZE, HEADS, HIDDEN, KV_HEADS, Decoder, Layer, captured_of

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.kernels.partition import along
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.lowering.emit.emit import emit
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.sample import Sample
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.fx.silu_and_mul import SiluAndMul
from fxhlo.passes.hlo.legalize import legalize_to_run
from fxhlo.passes.hlo.partition import partition
from fxhlo.passes.hlo.plan import Plan
from fxhlo.passes.mlir import bytecode, portable
from fxhlo.passes.pipeline import run
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.bundle import Bundle, load
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.mesh import ONE_DEVICE, Mesh
from fxhlo.runtime.core.sharding import Part, Sharding, Split
from fxhlo.runtime.core.signature import Argument

COLLECTIVES = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
MESHES = {2: Mesh((("model", 2),)), 4: Mesh((("kv", 2), ("rep", 2)))}
WINDOWS = (0, 0, 5)
"""Of the decoder's layers: two are alike, and emitted as one function."""
ROWS = int(os.environ["ROWS"]) if "ROWS" in os.environ else None
"""`Plan.rows`, for the run without native kernels, in which products are XLA's."""
PASSES = (
    SelectRows(), PagedAttention(block_size=16, pages=4), Sample(logprobs=3, bias=4, seen=8), SiluAndMul(), Linear(), Donate(),
    Canonicalize(),
)  # fmt: skip


def plan(mesh: Mesh) -> Plan:
    """As runtime/vllm/meshes.py makes it of a model's layers."""
    every = tuple(name for name, _ in mesh.axes)
    keys = every if mesh.devices == 2 else ("kv",)
    qkv = (Part(HEADS * HEAD_SIZE, every), Part(KV_HEADS * HEAD_SIZE, keys), Part(KV_HEADS * HEAD_SIZE, keys))
    weights = {}
    for index in range(len(WINDOWS)):
        name = f"layers.{index}"
        weights[f"{name}.qkv.weight"] = Split(Sharding((every, ())), 0, qkv)
        weights[f"{name}.qkv.bias"] = Split(Sharding((every,)), 0, qkv)
        weights[f"{name}.out.weight"] = Split(Sharding(((), every)))
        weights[f"{name}.up.weight"] = Split(Sharding((every, ())), 0, (Part(HIDDEN, every),) * 2)
        weights[f"{name}.down.weight"] = Split(Sharding(((), every)))
    weights["embed.weight"] = Split(Sharding((every, ())))
    states = {f"kv_cache.layers.{index}.attn": Split(Sharding(((), (), keys, ()))) for index in range(len(WINDOWS))}
    return Plan(mesh, weights, states, ROWS)


def inputs(arguments: tuple[Argument, ...], greedy: bool) -> dict[str, np.ndarray]:
    """A prompt of five tokens and one of three. greedy: both, without log-probabilities; else one is drawn, and both show some."""
    given: dict[str, Any] = {
        "input_ids": [5, 6, 7, 8, 9, 3, 4, 5], "positions": [0, 1, 2, 3, 4, 0, 1, 2], "logit_rows": [4, 7],
        "slot_mapping": [16, 17, 18, 19, 20, 32, 33, 34], "seq_lens": [5, 3], "query_start_loc": [0, 5, 8],
        "block_tables": [[1, 0, 0, 0], [2, 0, 0, 0]], "temperature": [0.0, 0.0 if greedy else 0.9], "top_p": [1, 1], "seeds": [[1, 0], [7, 0]],
        "repetition_penalty": [1, 1], "logprobs_enabled": 0 if greedy else 1,
    }  # fmt: skip
    ones = ("allowed_mask", "grammar_mask", "bias_ids", "seen_ids")
    return {
        one.name: np.asarray(given.get(one.name, np.full(one.shape, -1 if one.name in ones else 0)), one.dtype)
        for one in arguments
    }


class Experts(torch.nn.Module):
    """Four experts of eight units, with biases, of which each row chooses two."""

    def __init__(self) -> None:
        super().__init__()
        self.w13, self.w2 = torch.nn.Parameter(torch.rand(4, 16, 6)), torch.nn.Parameter(torch.rand(4, 6, 8))
        self.w13_bias, self.w2_bias = torch.nn.Parameter(torch.rand(4, 16)), torch.nn.Parameter(torch.rand(4, 6))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(values[:, :4].softmax(-1), 2)
        result: torch.Tensor = torch.ops.fxhlo.moe(
            values, self.w13, self.w2, weights, ids.to(torch.int32), self.w13_bias, self.w2_bias, activation="silu", limit=0.0,
            alpha=1.0, beta=0.0, weight_on_input=False,
        )  # fmt: skip
        return result


def beside_torch(model: torch.nn.Module, columns: int, made: Plan) -> float:
    """The largest difference from torch's of the result on three rows of the model's program, loaded from a bundle."""
    given = [Input("values", ("tokens", columns), torch.float32)]
    module = emit(run((Linear(),), capture_callable(model, model, given, {"tokens": (1, 64)})), {"tokens": 3})
    partitioned = partition(bytecode(module.module), module.signature, made, "cpu")
    legal = legalize_to_run(bytecode(partitioned.module), "cpu")
    loaded = pjrt.compile(legal.bytecode, custom_calls=legal.custom_calls, mesh=made.mesh)
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    values = torch.rand(3, columns)
    with tempfile.TemporaryDirectory() as folder:
        with Bundle.create(Path(folder) / "b") as writer:
            writer.add_entry("main", portable(partitioned.module), partitioned.signature)
            writer.add_target("main", "cpu", executable=loaded, custom_calls=legal.custom_calls)
            writer.add_weights(arranged(weights, made))
        executable = load(Path(folder) / "b")["main"]
        assert executable.origin == "stored executable", executable.origin
        result = np.asarray(executable(values.numpy()))
    return float(np.abs(result - model(values).detach().numpy()).max())


def arranged(weights: Mapping[str, np.ndarray], made: Plan) -> dict[str, np.ndarray]:
    return {
        name: made.weights[name].arranged(array, made.mesh) if name in made.weights else array
        for name, array in weights.items()
    }


def layers(mesh: Mesh) -> dict[str, float]:
    """Layers of one kind beside torch: a product that is split by its inputs, experts split by their units and as a whole."""
    every = tuple(name for name, _ in mesh.axes)
    row = Plan(mesh, {"weight": Split(Sharding(((), every)))})
    fused = (Part(8, every), Part(8, every))
    units = {
        "w13": Split(Sharding(((), every, ())), 1, fused),
        "w13_bias": Split(Sharding(((), every)), 1, fused),
        "w2": Split(Sharding(((), (), every))),
    }
    ranks = {"w13": 3, "w2": 3, "w13_bias": 2, "w2_bias": 2}
    whole = {name: Split(along(rank, 0, every)) for name, rank in ranks.items()}
    return {
        "bias": beside_torch(torch.nn.Linear(8, 6), 8, row),
        "units": beside_torch(Experts(), 6, Plan(mesh, units)),
        "experts": beside_torch(Experts(), 6, Plan(mesh, whole)),
    }


def main() -> None:
    register_torch_ops()
    step_decoder.VOCABULARY = 64  # which the devices divide
    torch.manual_seed(0)
    model = Decoder([Layer(index, window) for index, window in enumerate(WINDOWS)])
    program = captured_of(model)
    module = emit(run(PASSES, program), {"tokens": 8, "requests": 2, "num_blocks": 4})
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    found: dict[int, dict[str, Any]] = {}
    answers: dict[int, list[np.ndarray]] = {}
    greedy_answers: dict[int, list[np.ndarray]] = {}
    for size, mesh in {1: ONE_DEVICE, **MESHES}.items():
        made = plan(mesh) if size > 1 else Plan()
        signature, data = module.signature, bytecode(module.module)
        if size > 1:
            partitioned = partition(data, signature, made, "cpu")
            signature, data = partitioned.signature, bytecode(partitioned.module)
        legal = legalize_to_run(data, "cpu")
        loaded = pjrt.compile(legal.bytecode, custom_calls=legal.custom_calls, mesh=mesh)
        again = pjrt.deserialize(loaded.serialize(), custom_calls=legal.custom_calls, mesh=mesh)
        results = []
        for each, greedy in ((loaded, False), (again, False), (loaded, True)):
            bound = Executable(each, signature).bind(arranged(weights, made))
            states = bound.zeros()
            before = [part.data.unsafe_buffer_pointer() for state in states for part in state.addressable_shards]
            values = inputs(signature.inputs, greedy)
            named = {one.name: state for one, state in zip(signature.states, states, strict=True)}
            arrays = bound.execute(
                [named[one.name] if one.name in named else each.device.put(values[one.name]) for one in bound.arguments]
            )
            after = [
                part.data.unsafe_buffer_pointer()
                for array, result in zip(arrays, signature.results, strict=True)
                if result.alias is not None
                for part in array.addressable_shards
            ]
            results.append([np.asarray(array) for array in arrays])
        greedy_answers[size] = results.pop()
        answers[size] = results[0]
        found[size] = {
            "tokens": results[0][0].tolist(),
            "differ": max(
                float(np.abs(a.astype(float) - b.astype(float)).max())
                for a, b in zip(results[0], answers[1], strict=True)
            ),
            "greedy": all((a == b).all() for a, b in zip(greedy_answers[size][:4], greedy_answers[1][:4], strict=True)),
            "stored": all((a == b).all() for a, b in zip(*results, strict=True)),
            "in place": sorted(before) == sorted(after),
            "collectives": Counter(COLLECTIVES.findall(loaded.text)),
            "layers": layers(mesh) if size > 1 else {},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
