"""Caches: what the model's layers keep between steps, what vLLM is told of it, and the bytes for it.

Comes in: vLLM's config, and the layers of a model that `build_model` made, with weights or without. Goes out: states, specs for
vLLM's cache manager, numbers of bytes. Guaranteed: the same on every start of an engine, and for a bundle that is made ahead of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...passes.cache_groups import CacheGroup
from ...passes.hlo.plan import ONE_DEVICE, Plan, rows_for
from ..core.targets import Target
from . import compat, memory
from .layers import catalog
from .meshes import check_groups, plan_of
from .parallel import context_of, devices_of, experts_apart, requests_of
from .stages import ONE_STAGE, Stages
from .states.groups import groups_of, placed, specs_for_vllm
from .states.rows import StateRows
from .states.spec import StateSpec
from .steps.options import StepOptions


class Caches:
    """layers: those that keep something, by name (`model.layers_of`). target: in whose memory."""

    def __init__(self, config: compat.VllmConfig, layers: Mapping[str, Any], target: Target) -> None:
        self._config = config
        self._layers = layers
        self._target = target

    def states(self) -> tuple[StateSpec, ...]:
        """The states of the model's layers."""
        return catalog.states(self._layers, self._config.cache_config.block_size)

    def slot_bytes(self, plan: Plan = ONE_DEVICE) -> int:
        """Bytes of the states that have a row per request, with as many rows as they have at least, on all devices of the plan."""
        sizes = {"num_slots": StepOptions.of(self._config).slots}
        return sum(state.bytes_in(sizes, plan) for state in self.states() if state.rows == "slots")

    def bytes_in(self, sizes: Mapping[str, int], plan: Plan, groups: Sequence[CacheGroup]) -> int:
        """Bytes of all states of the programs, on all devices of the plan. groups: as vLLM made them."""
        return sum(state.bytes_in(sizes, plan, self._target) for state in placed(self.states(), groups))

    def _stretch(self, plan: Plan) -> float:
        """How many times the bytes that vLLM counts a block takes in the devices' memory, of the layer with the most: devices that have the
        same part of it, and a TPU's padding of heads to its tiles."""
        one = {"num_blocks": plan.blocks(1)}
        blocks = [state for state in self.states() if state.rows == "blocks"]
        return max((state.bytes_in(one, plan, self._target) / state.bytes_in(one) for state in blocks), default=1.0)

    def _row_bytes(self) -> int:
        return sum(state.bytes_in({"num_slots": 1}) for state in self.states() if state.rows == "slots")

    def rows(self) -> StateRows | None:
        """The rows of these states where those of prefixes are cached; None where they are not, or there are none."""
        if not self._keeps_states:
            return None
        block, _ = compat.bytes_of_one_request(self._config, self._block_groups())
        return StateRows(self._config.scheduler_config.max_num_seqs, self._row_bytes(), block)

    @property
    def _keeps_states(self) -> bool:
        """Whether the states of prefixes are cached."""
        return self._row_bytes() > 0 and self._config.cache_config.mamba_cache_mode == "align"

    def _block_specs(self) -> dict[str, compat.KVCacheSpec]:
        """Of the layers with KV blocks; beside rows of states, blocks of all layers are of one length."""
        return specs_for_vllm(self.states(), one_length=self._keeps_states)

    def _block_groups(self) -> list[compat.KVCacheGroupSpec]:
        specs = self._block_specs()
        return compat.cache_groups(self._config, specs) if specs else []

    def for_vllm(self) -> dict[str, compat.KVCacheSpec]:
        """Each layer's state, as vLLM's cache manager takes it. Raises UnsupportedError for other kinds of layers.

        Where the batch assigns the rows of all states, these are vLLM's own specs of the layers, a block a request: without any, vLLM
        takes the model for an encoder. Beside a KV cache they are left out, since vLLM would make groups of unlike layers' blocks. Where the
        states of prefixes are cached, vLLM assigns the rows.
        """
        specs, rows = self._block_specs(), self.rows()
        if rows is not None:
            from .states.pool import specs_of_rows

            return {**specs, **specs_of_rows(rows, self._block_groups(), self._config)}
        own = {state.layer: self._layers[state.layer] for state in self.states() if state.rows == "slots"}
        return specs or {name: layer.get_kv_cache_spec(self._config) for name, layer in own.items()}

    def sizes(self, num_blocks: int) -> dict[str, int]:
        """The sizes of the states' symbols. num_blocks: of each KV cache."""
        rows = self.rows()
        slots = StepOptions.of(self._config).slots if rows is None else rows.of(num_blocks)
        return {"num_blocks": num_blocks, "num_slots": slots}

    def plan(self, model: nn.Module) -> Plan:
        """How the weights of `model` and the states lie on the engine's devices (--tensor-parallel-size)."""
        devices = devices_of(self._config)
        if devices == 1:
            return ONE_DEVICE
        if groups := self._block_groups():
            check_groups(self.states(), groups_of(groups, self._config.model_config.max_model_len))
        apart, context = experts_apart(self._config), context_of(self._config)
        return plan_of(
            model,
            self._layers,
            self.states(),
            devices,
            experts_apart=apart,
            context=context,
            requests=requests_of(self._config),
            rows=rows_for(self._target),
        )

    def share(self, stages: Stages) -> float:
        """The part of the states that the stage with the most of them keeps."""
        return stages.share(self.states(), {"num_blocks": 1, "num_slots": StepOptions.of(self._config).slots})

    def bytes_for_vllm(
        self, weights: int, room: memory.Room, plan: Plan = ONE_DEVICE, stages: Stages = ONE_STAGE
    ) -> int:
        """Bytes for the KV cache, the same on every start of an engine, so that cached programs fit. Raises CacheSizeError.

        weights: bytes of all weights, which are or will be in the memory of `room`, on all devices of the plan; of a pipeline, those of
        the stage with the most. Every stage has as many blocks, of its own layers.
        """
        share = self.share(stages)
        if not room.on_host:  # as much as if all stages were like the one with the most
            room, weights = room.scaled(1 / share), int(weights / share)
        config, rows = self._config, self.rows()
        block, longest = compat.bytes_of_one_request(config, compat.cache_groups(config, self.for_vllm()))
        parts = requests_of(config)
        slots, blocks = self.slot_bytes(plan), config.cache_config.num_gpu_blocks_override
        if rows is None and not any(state.rows == "blocks" for state in self.states()):
            # vLLM's first block is for no request, like our first slot
            return (blocks or StepOptions.of(config).slots) * block
        if config.model_config.original_max_model_len == -1:
            longest = 0  # vLLM chooses a length that fits
        stretch = self._stretch(plan)
        free = int(((room.free if room.on_host else min(room.free, room.total - weights)) - slots) / stretch)
        least = 0 if rows is None else rows.least
        if blocks is not None:
            memory.check_blocks(blocks, -(-longest // block), config.model_config.max_model_len, parts)
            wanted = blocks * block if rows is None else rows.bytes_of(blocks)
            memory.kv_cache_bytes(wanted, block, 0, free, room.place, beside=least)
            return blocks * block
        if parts > 1 and longest:
            longest = (longest + block) * parts  # each part holds one, and the first a block for none
        wanted = memory.wanted_bytes(
            config.cache_config, compat.kv_cache_space(), weights + slots, longest + least, room
        )
        if config.cache_config.kv_cache_memory_bytes is not None:
            wanted = int(wanted * plan.mesh.devices / share)  # it is of one device
        wanted = memory.kv_cache_bytes(int(wanted / stretch), block, longest, free, room.place, beside=least, parts=parts)
        if parts > 1:
            return wanted // block // parts * parts * block
        return wanted if rows is None else rows.blocks_in(wanted) * block

    def ahead(
        self, weights: int, room: memory.Room, plan: Plan = ONE_DEVICE, stages: Stages = ONE_STAGE
    ) -> tuple[tuple[CacheGroup, ...], int]:
        """The groups and the number of blocks of each cache that vLLM's engine core will make; arguments as `bytes_for_vllm` takes them."""
        available = self.bytes_for_vllm(weights, room, plan, stages)
        kv_cache = compat.kv_cache_config(self._config, self.for_vllm(), available)
        return self.groups(kv_cache), plan.blocks(kv_cache.num_blocks)

    def groups(self, kv_cache: compat.KVCacheConfig) -> tuple[CacheGroup, ...]:
        """vLLM's groups of layers whose blocks it assigns together. kv_cache: what it made of `bytes_for_vllm`."""
        return groups_of(kv_cache.kv_cache_groups, self._config.model_config.max_model_len)
