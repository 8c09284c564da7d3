"""vLLM's process groups, without which its layers cannot be made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
    model_parallel_is_initialized,
)
from vllm.distributed.utils import get_pp_indices

from ...core.errors import UnsupportedError


def start_one_process(vllm_config: VllmConfig) -> None:
    """Sets up vLLM's process groups for a world of one process, once, without opening a socket.

    vLLM's layers need their groups even without parallelism, and vLLM makes a gloo group, which listens on a port, for each.
    A group of one process does not communicate, so torch's "fake" backend is enough. vLLM makes no group of experts for a dense
    model, and a later engine of this process may need one: a config without a model gets all groups.
    """
    if model_parallel_is_initialized():
        return
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

    any_model = copy.copy(vllm_config)
    any_model.model_config = None  # type: ignore[assignment]
    with set_current_vllm_config(any_model), _fake_groups():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("fake", store=torch.distributed.HashStore(), rank=0, world_size=1)
        init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="fake")
        ensure_model_parallel_initialized(1, 1)


def start_hosts(vllm_config: VllmConfig, number: int, seconds: int) -> torch.distributed.Store:
    """Sets up vLLM's process groups where each host has one worker: the world's by gloo, over which vLLM makes its message queues, and
    those of layers as `start_one_process` does. Returns the world's store.

    number: of this host; seconds: until all must be there. Raises RuntimeError where they are not.
    """
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

    any_model = copy.copy(vllm_config)
    any_model.model_config = None  # type: ignore[assignment]
    hosts = vllm_config.parallel_config.nnodes
    with set_current_vllm_config(any_model):
        init_distributed_environment(
            world_size=hosts, rank=number, local_rank=0, backend="gloo", timeout=timedelta(seconds=seconds)
        )
        with _fake_groups():
            ensure_model_parallel_initialized(1, 1, backend="fake")
    return torch.distributed.distributed_c10d._get_default_store()


def layers_of_stages(layers: int, stages: int) -> list[int]:
    """The stage of each layer, as vLLM shares them out. Raises UnsupportedError for a VLLM_PP_LAYER_PARTITION that does not fit."""
    try:
        bounds = [get_pp_indices(layers, stage, stages) for stage in range(stages)]
    except ValueError as problem:
        raise UnsupportedError(str(problem), next_step="correct or unset VLLM_PP_LAYER_PARTITION") from problem
    return [stage for stage, (first, end) in enumerate(bounds) for _ in range(first, end)]


def shared(store: torch.distributed.Store, name: str, make: Callable[[], Any] | None) -> Any:
    """What `make` gave to the host that has one, as JSON; other hosts wait for it."""
    if make is None:
        return json.loads(store.get(name))
    made = make()
    store.set(name, json.dumps(made))
    return made


@contextmanager
def _fake_groups() -> Iterator[None]:
    original: Callable[..., object] = torch.distributed.new_group

    def new_group(*args: object, **kwargs: object) -> object:
        return original(*args, **{**kwargs, "backend": "fake"})

    torch.distributed.new_group = new_group
    try:
        yield
    finally:
        torch.distributed.new_group = original
