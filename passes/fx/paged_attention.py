"""Gives attention a KV cache: replaces `fxhlo.attention` by `fxhlo.ragged_paged_attention` on one cache per layer.

The caches are state arguments of the program, and their new values are results; slot mappings and block tables are
inputs. For one request that starts at position 0, the program computes the same as before.

Several ops with the same layer's name read one cache: those after the first write the same keys and values once more. Layers
of different cache groups share memory, each in blocks of its own, so their ops follow one another on one state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..base import Pass
from ..cache_groups import CacheGroup, owner, page_sizes, paged_inputs
from ..edit import call, replace_by_stateful
from ..extension import Extension, extended
from ..program import Program
from ..rewrite import noted
from ..step_inputs import StepInput


@dataclass(frozen=True)
class PagedAttention(Pass):
    """block_size: tokens per page. pages: length of a request's block table. dtype: of the cache (None: of the keys).
    groups: the cache groups of an engine, which say both for their layers.

    Raises ValueError for a size below 1.
    """

    block_size: int = 16
    pages: int = 512
    dtype: torch.dtype | None = None
    groups: tuple[CacheGroup, ...] = ()

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        named = {one.name: one for index in range(len(self._groups)) for one in paged_inputs(index)}
        return tuple(named.values())

    @property
    def _groups(self) -> tuple[CacheGroup, ...]:
        return self.groups or (CacheGroup((), self.block_size, self.pages),)

    def __post_init__(self) -> None:
        CacheGroup((), self.block_size, self.pages)  # which refuses sizes that are none
        if self.groups and (self.block_size, self.pages) != (self.groups[0].block_size, self.groups[0].pages):
            raise ValueError(
                f"the model's layers are in {len(self.groups)} cache groups, which have sizes of their own"
            )

    def __call__(self, program: Program) -> Program:
        program = noted(program, self.name, _without_cache(program.graph))
        if not _sites(program.graph):
            return program

        def edit(graph: fx.Graph, extension: Extension) -> None:
            keys = {_layer(node): _key(node) for node in _sites(graph)}
            caches = Caches(self._groups, extension, keys, self.dtype)
            for node in _sites(graph):
                caches.give(graph, node)
            for state, value in caches.values.items():
                extension.update(state, value)

        return extended(program, edit)


class Caches:
    """The KV caches of a program that is being extended. keys: [T, heads, size] of each layer. values: the last of each state."""

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        extension: Extension,
        keys: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        self._groups, self._extension, self._keys, self._dtype = groups, extension, keys, dtype
        self._metadata = [extension.inputs(paged_inputs(index), page_sizes(groups)) for index in range(len(groups))]
        self.values: dict[str, fx.Node] = {}

    def give(self, graph: fx.Graph, node: fx.Node) -> None:
        """Replaces the attention `node` by one that reads and writes its layer's cache."""
        args: Any = node.args
        query, key, value, sinks, alibi_slopes = args
        attributes = {name: entry for name, entry in node.kwargs.items() if name not in ("layer", "causal")}
        index, named = owner(self._groups, _layer(node))
        memory, state = self._memory(named), f"kv_cache.{named}"
        with graph.inserting_before(node):
            cache = _viewed(graph, memory, self._shape(_layer(node)), node)
        args = (query, key, value, cache, *self._metadata[index], sinks, alibi_slopes, None, None)
        target = torch.ops.fxhlo.ragged_paged_attention.default
        updated = replace_by_stateful(graph, node, target, args, attributes)
        with graph.inserting_after(updated):
            self.values[state] = _viewed(graph, updated, memory.meta["val"].shape, updated)

    def _memory(self, named: str) -> fx.Node:
        """The latest value of the memory that has this layer's name."""
        state = f"kv_cache.{named}"
        if state not in self.values:
            dtype = self._dtype or self._keys[named].dtype
            self.values[state] = self._extension.state(state, self._shape(named), dtype)
        return self.values[state]

    def _shape(self, layer: str) -> tuple[Any, ...]:
        kv_heads, head_size = self._keys[layer].shape[1:]
        block_size = self._groups[owner(self._groups, layer)[0]].block_size
        return (self._extension.size("num_blocks"), block_size, 2 * kv_heads, head_size)


def _viewed(graph: fx.Graph, cache: fx.Node, shape: Sequence[Any], origin: fx.Node) -> fx.Node:
    """The same bytes as blocks of another layer's heads."""
    if tuple(cache.meta["val"].shape[1:]) == tuple(shape[1:]):
        return cache
    return call(graph, torch.ops.aten.view.default, (cache, [-1, *shape[1:]]), origin=origin)


def _layer(node: fx.Node) -> str:
    return str(node.kwargs["layer"])


def _key(node: fx.Node) -> torch.Tensor:
    key: Any = node.args[1]
    return key.meta["val"]


def _sites(graph: fx.Graph) -> list[fx.Node]:
    """The attention nodes that get a cache."""
    return [node for node in _attention(graph) if _encoder(node) is None]


def _without_cache(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The attention nodes that get none, by reason."""
    found: dict[str, list[fx.Node]] = {}
    for node in _attention(graph):
        if reason := _encoder(node):
            found.setdefault(reason, []).append(node)
    return found


def _attention(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is torch.ops.fxhlo.attention.default]


def _encoder(node: fx.Node) -> str | None:
    """Why the attention needs no cache, or None."""
    if not node.kwargs.get("causal", True):
        return "attention that is not causal sees all of its tokens in one call, and keeps none"
    return None if node.kwargs["layer"] else "attention without a layer's name has no cache of its own"
