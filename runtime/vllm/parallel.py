"""Where --tensor-parallel-size goes: one worker a host owns all of its devices, and vLLM sees a world of as many as there are hosts.

Imports nothing of vLLM's: the platform calls it while vLLM makes a config. meshes.py has what follows from the number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.errors import UnsupportedError
from .settings import Note, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FIELD = "fxhlo_mesh"
"""Of vLLM's `additional_config`: {"model": devices of a stage, on all hosts; "experts": whether whole experts are apart; "hosts": their
number; "stages": of a pipeline; "context": devices that share a context}."""


def take_over(config: VllmConfig) -> None:
    """Moves --tensor-parallel-size from vLLM's config to `additional_config`. Idempotent: a config that has been here has the field.
    Raises UnsupportedError where the devices cannot be parted as asked.

    What is left of it is the number of hosts (--nnodes): vLLM's `mp` executor starts a worker for each, and asks that all worlds together are
    the tensor parallel size. --pipeline-parallel-size stays: vLLM's engine has as many steps under way; the worker has all stages.
    """
    parallel = config.parallel_config
    if max(parallel.tensor_parallel_size, parallel.pipeline_parallel_size) > 1 and not _mesh(config):
        others = config.additional_config if isinstance(config.additional_config, dict) else {}
        mesh = Note(
            model=parallel.tensor_parallel_size,
            experts=bool(parallel.enable_expert_parallel),
            hosts=parallel.nnodes,
            stages=parallel.pipeline_parallel_size,
            context=parallel.decode_context_parallel_size,
        )
        config.additional_config = {**others, FIELD: mesh}
        parallel.tensor_parallel_size = parallel.world_size = parallel.nnodes
        parallel.decode_context_parallel_size = 1
    parts, devices = requests_of(config), devices_of(config)
    if parts > 1 and max(stages_of(config), hosts_of(config)) > 1:
        option = "--pipeline-parallel-size" if stages_of(config) > 1 else "--nnodes"
        raise UnsupportedError(
            f"attention_data_parallel parts the devices of one stage on one host, and {option} asks for more",
            next_step=f"leave out attention_data_parallel, or {option}",
        )
    if devices % parts:
        raise UnsupportedError(
            f"attention_data_parallel parts {devices} {'device' if devices == 1 else 'devices'} into {parts}",
            next_step="give a number that divides --tensor-parallel-size: they are the same devices",
        )


def of_worker(config: VllmConfig) -> VllmConfig:
    """The config that a worker builds its model by: of one device, whatever the number of hosts and of stages."""
    parallel = config.parallel_config
    if parallel.tensor_parallel_size == parallel.pipeline_parallel_size == 1:
        return config
    made = copy.copy(config)
    made.parallel_config = copy.copy(parallel)
    made.parallel_config.tensor_parallel_size = made.parallel_config.pipeline_parallel_size = 1
    return made


def devices_of(config: VllmConfig) -> int:
    """The devices over which a layer is split; 1 without --tensor-parallel-size."""
    return int(_mesh(config).get("model", 1))


def stages_of(config: VllmConfig) -> int:
    """The stages of the pipeline, each with devices of its own; 1 without --pipeline-parallel-size."""
    return int(_mesh(config).get("stages", 1))


def all_devices_of(config: VllmConfig) -> int:
    """The devices of all stages, on all hosts."""
    return devices_of(config) * stages_of(config)


def hosts_of(config: VllmConfig) -> int:
    """The hosts on which the devices are, equally many on each."""
    return int(_mesh(config).get("hosts", 1))


def context_of(config: VllmConfig) -> int:
    """The devices that share the context of the same heads (--decode-context-parallel-size)."""
    return int(_mesh(config).get("context", 1))


def requests_of(config: VllmConfig) -> int:
    """How many groups of these devices have the KV caches of other requests (attention_data_parallel)."""
    return Settings.of(config).attention_data_parallel


def experts_apart(config: VllmConfig) -> bool:
    """Whether each device has whole experts (--enable-expert-parallel), and not a part of each."""
    return bool(_mesh(config).get("experts", False))


def _mesh(config: VllmConfig) -> Mapping[str, int]:
    return config.additional_config.get(FIELD, {}) if isinstance(config.additional_config, dict) else {}
