"""Gives attention a KV cache: replaces `fxhlo.attention` by `fxhlo.ragged_paged_attention` on one cache per layer.

The caches are state arguments of the program, and their new values are results; slot mappings and block tables are
inputs. For one request that starts at position 0, the program computes the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from ..base import Pass
from ..edit import call
from ..extension import Extension, extended
from ..program import Program
from ..rewrite import noted
from ..step_inputs import PAGED, StepInput


@dataclass(frozen=True)
class PagedAttention(Pass):
    """block_size: tokens per page. pages: length of a request's block table. dtype: of the cache (None: of the keys).

    Raises ValueError for a size below 1.
    """

    block_size: int = 16
    pages: int = 512
    dtype: torch.dtype | None = None

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return PAGED

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.pages < 1:
            raise ValueError("it must be at least 1")

    def __call__(self, program: Program) -> Program:
        program = noted(program, self.name, _without_cache(program.graph))
        if not _sites(program.graph):
            return program

        def edit(graph: fx.Graph, extension: Extension) -> None:
            metadata = extension.inputs(self.inputs, {"pages": self.pages})
            for node in _sites(graph):
                self._replace(graph, node, extension, metadata)

        return extended(program, edit)

    def _replace(self, graph: fx.Graph, node: fx.Node, extension: Extension, metadata: list[fx.Node]) -> None:
        args: Any = node.args
        query, key, value, sinks, alibi_slopes = args
        attributes = {name: entry for name, entry in node.kwargs.items() if name not in ("layer", "causal")}
        state = f"kv_cache.{node.kwargs['layer']}"
        kv_heads, head_size = key.meta["val"].shape[1:]
        shape = (extension.size("num_blocks"), self.block_size, 2 * kv_heads, head_size)
        cache = extension.state(state, shape, self.dtype or key.meta["val"].dtype)
        with graph.inserting_before(node):
            both = call(
                graph,
                torch.ops.fxhlo.ragged_paged_attention.default,
                (query, key, value, cache, *metadata, sinks, alibi_slopes, None, None),
                attributes,
                origin=node,
            )
            attended = call(graph, getitem, (both, 0), origin=node)
            extension.update(state, call(graph, getitem, (both, 1), origin=node))
        node.replace_all_uses_with(attended)
        graph.erase_node(node)


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
