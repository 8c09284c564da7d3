"""Data parallelism: several engines on one host, each with its own share of the devices, the cores and the memory.

vLLM starts a process for each engine (`--data-parallel-size`) and hands requests out among them; the engines share nothing. Each takes its
share before XLA starts in its process, for XLA takes every device and core that it finds.
"""

from __future__ import annotations

import copy
import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import UnsupportedError
from ..core.targets import Target
from .parallel import all_devices_of
from .settings import Note

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ENGINES = "fxhlo_engines"
"""Key of vLLM's `additional_config`: {"count": the number of engines on this host}. An engine's own config no longer says it."""
VISIBLE = {"tpu": "TPU_VISIBLE_CHIPS", "cuda": "CUDA_VISIBLE_DEVICES"}
"""Family of targets -> the environment variable with the numbers of the devices that a process may use, separated by commas."""
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Chips of one process -> the grid that libtpu takes them for."""


def note_engines(config: VllmConfig) -> None:
    """Keeps the number of engines in a config that vLLM is going to give to each of them."""
    engines = config.parallel_config.data_parallel_size_local
    if engines > 1:
        others = config.additional_config if isinstance(config.additional_config, dict) else {}
        config.additional_config = {**others, ENGINES: Note(count=engines)}


def independent(config: VllmConfig) -> VllmConfig:
    """The config of an engine by itself: where engines run in step with each other, vLLM would split experts among them."""
    if config.parallel_config.data_parallel_size == 1:
        return config
    made = copy.copy(config)
    made.parallel_config = copy.copy(config.parallel_config)
    made.parallel_config.reconfigure_for_independent_dp_rank()
    return made


@dataclass(frozen=True)
class Share:
    """What belongs to engine number `index` of `engines` on this host. devices: of each engine."""

    index: int = 0
    engines: int = 1
    devices: int = 1

    @classmethod
    def of(cls, config: VllmConfig) -> Share:
        """Reads it from the config of one engine."""
        noted = config.additional_config.get(ENGINES, {}) if isinstance(config.additional_config, dict) else {}
        return cls(config.parallel_config.data_parallel_rank_local or 0, noted.get("count", 1), all_devices_of(config))

    def take(self, target: Target) -> None:
        """Leaves this process its devices, or on the CPU its cores. Call it before XLA starts."""
        if self.engines == 1:
            return
        if target.family == "cpu":
            self._take_cores()
        elif target.family in VISIBLE:
            self.take_devices(target.family, os.environ)

    def take_devices(self, family: str, environment: MutableMapping[str, str]) -> None:
        """Names the engine's devices among those that are visible. Raises UnsupportedError where there are too few."""
        name, first = VISIBLE[family], self.index * self.devices
        given = [one for one in environment.get(name, "").split(",") if one]
        visible = given or [str(number) for number in range(self.engines * self.devices)]
        mine = visible[first : first + self.devices]
        if len(mine) < self.devices:
            raise UnsupportedError(
                f"{self.engines} engines need {self.engines * self.devices} devices, and {name} names {len(visible)}",
                next_step=f"lower --data-parallel-size, or name more devices in {name}",
            )
        environment[name] = ",".join(mine)
        if family == "tpu":
            environment["TPU_PROCESS_BOUNDS"] = BOUNDS[1]
            environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] = BOUNDS[self.devices]

    def cores(self, available: set[int]) -> set[int]:
        """The engine's part of the cores; all of them where there are fewer than engines."""
        ordered = sorted(available)
        if len(ordered) < self.engines:
            return available
        bounds = [len(ordered) * number // self.engines for number in (self.index, self.index + 1)]
        return set(ordered[slice(*bounds)])

    def _take_cores(self) -> None:
        """Threads that start from now on have these cores, and XLA makes as many threads as cores."""
        if hasattr(os, "sched_setaffinity"):  # Linux
            os.sched_setaffinity(0, self.cores(os.sched_getaffinity(0)))

    def memory(self, total: int) -> int:
        """The engine's part of the host's memory, in bytes."""
        return total // self.engines
