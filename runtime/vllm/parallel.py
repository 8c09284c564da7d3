"""Where --tensor-parallel-size goes: one worker a host owns all of its devices, and vLLM sees a world of as many as there are hosts.

Imports nothing of vLLM's: the platform calls it while vLLM makes a config. meshes.py has what follows from the number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.errors import UnsupportedError
from .heads import mesh_of
from .settings import Note, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FIELD = "fxhlo_mesh"
"""Of vLLM's `additional_config`: {"model": devices of a stage, on all hosts; "experts": whether whole experts are apart; "hosts": their
number; "stages": of a pipeline; "context": devices that share a context}."""
WITHOUT_CACHE = ("encoder_only", "attention_free")
"""vLLM's words for models whose layers keep no keys."""


def take_over(config: VllmConfig) -> None:
    """Moves --tensor-parallel-size from vLLM's config to `additional_config`. Idempotent: a config that has been here has the field.
    Raises UnsupportedError where the devices cannot be shared as asked: by what the config shows, which is before there is an engine.

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
    _check(config)


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


def without_cache() -> UnsupportedError:
    """For attention data parallelism of a model that keeps no keys."""
    return UnsupportedError(
        "attention_data_parallel: this model has no KV cache whose requests could be on other devices",
        next_step="leave out attention_data_parallel",
    )


def latents_by_blocks() -> UnsupportedError:
    """For a context that devices share, where its cache is of latents."""
    return UnsupportedError(
        "fxhlo does not split the cache of latent attention by its blocks yet",
        next_step="leave out --decode-context-parallel-size; attention_data_parallel splits it by requests (docs/meshes.md)",
    )


def _check(config: VllmConfig) -> None:
    """Raises UnsupportedError for what cannot be combined, and for numbers of devices that the model's own do not go with."""
    _check_options(config)
    model = config.model_config
    if model is None:
        return
    devices, context, requests = devices_of(config), context_of(config), requests_of(config)
    if requests > 1 and model.attn_type in WITHOUT_CACHE:
        raise without_cache()
    if context > 1 and model.use_mla:
        raise latents_by_blocks()
    experts = model.get_num_experts()
    if experts_apart(config) and experts % devices:
        raise UnsupportedError(
            f"{devices} devices do not divide the model's {experts} experts, which --enable-expert-parallel has whole on one device each",
            next_step=f"take a --tensor-parallel-size that divides {experts}, or leave out --enable-expert-parallel: each device has a "
            "part of every expert",
        )
    if not model.is_attention_free and not model.use_mla:
        mesh_of(devices, (), (model.get_total_num_kv_heads(),), context, requests)


def _check_options(config: VllmConfig) -> None:
    """Raises UnsupportedError where attention data parallelism does not go with another option."""
    requests, devices = requests_of(config), devices_of(config)
    beside = {
        "--decode-context-parallel-size": context_of(config),
        "--pipeline-parallel-size": stages_of(config),
        "--nnodes": hosts_of(config),
    }
    if requests > 1 and (others := [option for option, size in beside.items() if size > 1]):
        raise UnsupportedError(
            f"attention_data_parallel does not go with {' and '.join(others)}: it shares out the whole KV cache of one stage on one host",
            next_step=f"leave out attention_data_parallel, or {' and '.join(others)}",
        )
    if devices % requests:
        raise UnsupportedError(
            f"attention_data_parallel is {requests}, and {devices} {'device is' if devices == 1 else 'devices are'} not divided by it",
            next_step="give a number that divides --tensor-parallel-size: the groups are of the same devices",
        )
