"""vLLM's process groups, without which its layers cannot be made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
    model_parallel_is_initialized,
)


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
