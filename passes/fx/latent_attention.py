"""Gives latent attention a cache: replaces `fxhlo.latent_attention` by `fxhlo.ragged_paged_latent_attention` on one cache per layer.

So too `fxhlo.lightning_index`, by which sparse attention chooses its keys. The caches are
state arguments of the program, and their new values are results; slot mappings and block tables are the inputs
of PagedAttention. For one request that starts at position 0, the program computes the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..base import Pass
from ..cache_groups import CacheGroup
from ..edit import replace_by_stateful
from ..extension import Extension, extended
from ..program import Program
from ..step_inputs import PAGED, StepInput


@dataclass(frozen=True)
class LatentAttention(Pass):
    """block_size: tokens per page. pages: length of a request's block table.

    Raises ValueError for a size below 1.
    """

    block_size: int = 16
    pages: int = 512

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return PAGED

    def __post_init__(self) -> None:
        CacheGroup((), self.block_size, self.pages)  # which refuses sizes that are none

    def __call__(self, program: Program) -> Program:
        if not _sites(program.graph):
            return program

        def edit(graph: fx.Graph, extension: Extension) -> None:
            metadata = extension.inputs(self.inputs, {"pages": self.pages})
            for node in _sites(graph):
                self._replace(graph, node, extension, metadata)

        return extended(program, edit)

    def _replace(self, graph: fx.Graph, node: fx.Node, extension: Extension, metadata: list[fx.Node]) -> None:
        paged, count = _paged()[node.target]
        operands: Any = node.args
        attributes = {name: entry for name, entry in node.kwargs.items() if name != "layer"}
        name = f"kv_cache.{node.kwargs['layer']}"
        cached = operands[1].meta["val"]
        shape = (extension.size("num_blocks"), self.block_size, cached.shape[1])
        cache = extension.state(name, shape, cached.dtype)
        args = (*operands[:count], cache, *metadata, *operands[count:])
        extension.update(name, replace_by_stateful(graph, node, paged, args, attributes))


def _paged() -> dict[object, tuple[Any, int]]:
    """For each op without a cache: the one with a cache, and how many operands stand before it. The second of them is cached."""
    ops = torch.ops.fxhlo
    return {
        ops.latent_attention.default: (ops.ragged_paged_latent_attention.default, 4),
        ops.lightning_index.default: (ops.ragged_paged_lightning_index.default, 3),
    }


def _sites(graph: fx.Graph) -> list[fx.Node]:
    ops = _paged()
    return [node for node in graph.nodes if node.target in ops]
