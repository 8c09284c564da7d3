"""Where --tensor-parallel-size goes: one worker owns all devices, and vLLM sees a world of one.

Imports nothing of vLLM's: the platform calls it while vLLM makes a config. meshes.py has what follows from the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .settings import Note

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FIELD = "fxhlo_mesh"
"""Of vLLM's `additional_config`: {"model": devices, "experts": whether whole experts are apart}."""


def take_over(config: VllmConfig) -> None:
    """Moves --tensor-parallel-size from vLLM's config to `additional_config`. Idempotent: a config that has been here has size 1."""
    parallel = config.parallel_config
    if parallel.tensor_parallel_size > 1:
        others = config.additional_config if isinstance(config.additional_config, dict) else {}
        mesh = Note(model=parallel.tensor_parallel_size, experts=bool(parallel.enable_expert_parallel))
        config.additional_config = {**others, FIELD: mesh}
        parallel.tensor_parallel_size = parallel.world_size = 1


def devices_of(config: VllmConfig) -> int:
    """The devices over which a model is split; 1 without --tensor-parallel-size."""
    return int(_mesh(config).get("model", 1))


def experts_apart(config: VllmConfig) -> bool:
    """Whether each device has whole experts (--enable-expert-parallel), and not a part of each."""
    return bool(_mesh(config).get("experts", False))


def _mesh(config: VllmConfig) -> Mapping[str, int]:
    return config.additional_config.get(FIELD, {}) if isinstance(config.additional_config, dict) else {}
