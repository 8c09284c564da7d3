"""Cache groups: which layers' KV blocks vLLM assigns together, and the memory that layers of different groups share.

Comes in: the states of a model's layers. Goes out: their specs for vLLM, the groups that vLLM made of them, and the states of the
programs. Layers that keep every token are one group. Those with a window are groups of the same number of layers, so that a
block of the one pool serves layer n of any group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....passes.cache_groups import CacheGroup, owner
from ...core.errors import UnsupportedError
from .paged_kv import PagedKV
from .spec import StateSpec

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVCacheSpec


def specs_for_vllm(states: Sequence[StateSpec], *, one_length: bool = False) -> dict[str, KVCacheSpec]:
    """What vLLM's cache manager is told of each layer that has blocks.

    A layer of a window keeps only that, where its blocks can be as large as those of the other layers: no padding. Otherwise all
    layers keep every token. one_length: blocks of all layers are of the same number of tokens.
    """
    windowed = [state for state in states if isinstance(state, PagedKV) and (state.window or state.chunk)]
    if windowed and not _same_size(states, one_length):
        states = [state.whole() if isinstance(state, PagedKV) else state for state in states]
    specs = {state.layer: state.for_vllm() for state in states}
    return {layer: spec for layer, spec in specs.items() if spec is not None}


def _same_size(states: Sequence[StateSpec], one_length: bool) -> bool:
    """Whether the blocks of all layers can be of one number of bytes, by more tokens in the smaller ones unless they are of `one_length`."""
    specs = [spec for state in states if (spec := state.for_vllm()) is not None]
    largest = max(spec.page_size_bytes for spec in specs)
    return all(isinstance(state, PagedKV) for state in states if state.rows == "blocks") and all(
        spec.page_size_bytes == largest if one_length else largest % spec.page_size_bytes == 0 for spec in specs
    )


def groups_of(groups: Sequence[KVCacheGroupSpec], max_model_len: int) -> tuple[CacheGroup, ...]:
    """vLLM's groups of KV blocks, with the length of a request's block table in each."""
    states = state_group_of(groups)
    return tuple(
        CacheGroup(tuple(group.layer_names), size, -(-max_model_len // size))
        for index, group in enumerate(groups)
        if index != states
        for size in [group.kv_cache_spec.block_size]
    )


def state_group_of(groups: Sequence[KVCacheGroupSpec]) -> int | None:
    """Which of vLLM's groups has rows of states for blocks; None where no prefix's states are cached."""
    from .. import compat

    specs = [group.kv_cache_spec for group in groups]
    found = [
        index
        for index, spec in enumerate(specs)
        if isinstance(spec, compat.MambaSpec) and spec.mamba_cache_mode == "align"
    ]
    return found[0] if found else None


def placed(states: Sequence[StateSpec], groups: Sequence[CacheGroup]) -> tuple[StateSpec, ...]:
    """The states that the programs have: one for layers of several groups that share memory.

    Raises UnsupportedError where layers of several groups keep something else than keys and values.
    """
    if len(groups) < 2:
        return tuple(states)
    found: list[StateSpec] = []
    for state in states:
        if state.rows != "blocks":
            found.append(state)
            continue
        if not isinstance(state, PagedKV):
            raise UnsupportedError(
                f"fxhlo does not support {type(state).__name__} ({state.layer}) in one of {len(groups)} cache groups yet",
                next_step="start with --disable-hybrid-kv-cache-manager",
            )
        index, named = owner(groups, state.layer)
        if named == state.layer:
            found.append(state.in_blocks_of(groups[index].block_size))
    return tuple(found)
