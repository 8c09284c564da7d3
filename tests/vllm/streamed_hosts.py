"""`python streamed_hosts.py ADDRESS NUMBER FOLDER KIND`: one of two hosts with a CPU device each streams the folder's model onto the mesh of both,
and prints as JSON how much memory it held beside what its device holds.

KIND "values": the folder's weights are small, and what the device has of each is compared with what a host alone has. "memory": they are not.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out (-P)
from streamed_load import Memory

HOSTS = 2


def main() -> None:
    address, number, folder, kind = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    from fxhlo.runtime.core import processes
    from fxhlo.runtime.core.plugins import reserve_cpu_devices
    from fxhlo.runtime.core.targets import Target
    from fxhlo.runtime.vllm.compat import engine_config, layers_of
    from fxhlo.runtime.vllm.meshes import plan_of
    from fxhlo.runtime.vllm.model import build_model
    from fxhlo.runtime.vllm.places import Places

    reserve_cpu_devices(1)
    processes.join(address, HOSTS, number, "cpu")
    dtype = "float32" if kind == "values" else "bfloat16"
    config = engine_config(str(folder), dtype=dtype, max_model_len=64, max_num_seqs=4)
    config.load_config.load_format = "auto"
    expected = _values(build_model(config, weights=True)) if kind == "values" else {}
    shapes = build_model(config, weights=False)
    plan = plan_of(shapes, layers_of(config), (), HOSTS)
    places = Places(Target.parse("cpu"), plan, model=shapes)
    stream, memory = places.stream(), Memory()
    model = build_model(config, weights=True, stream=stream)
    places.plan = plan_of(model, layers_of(config), (), HOSTS)
    made = stream.finish(model)
    names = list(made)
    places.take(made)
    placed = {name: places.first.streamed(name) for name in names}
    here = sum(shard.data.nbytes for buffer in placed.values() for shard in buffer.addressable_shards)
    wrong = [name for name, value in expected.items() if not _same(placed[name], value, places.plan, name, number)]
    facts = {
        "here": here,
        "held": stream.peak,
        "read": stream.read,
        "grown": memory.most - memory.begin,
        "wrong": wrong,
    }
    print(json.dumps({**facts, "arrays": sorted(placed), "expected": sorted(expected)}))
    sys.stdout.flush()
    os._exit(0)


def _values(model: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def _same(buffer: Any, value: np.ndarray, plan: Any, name: str, number: int) -> bool:
    """Whether this host's device has its part of a value that is in the model's order."""
    (shard,) = buffer.addressable_shards
    return np.array_equal(np.asarray(shard.data), plan.split(name).piece(value, plan.mesh, number))


if __name__ == "__main__":
    main()
