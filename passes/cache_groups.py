"""CacheGroup: layers whose KV blocks vLLM assigns together, through one block table of each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .step_inputs import PAGED, StepInput

PER_GROUP = ("slot_mapping", "block_tables")
"""The inputs of PAGED that each group has of its own; lengths are the request's."""


@dataclass(frozen=True)
class CacheGroup:
    """layers: by name. block_size: in tokens. pages: length of a request's block table.

    Groups share one pool of blocks: layer number n of every group keeps its keys and values in the same memory, in other blocks.

    Raises ValueError for a size below 1.
    """

    layers: tuple[str, ...]
    block_size: int
    pages: int

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.pages < 1:
            raise ValueError("it must be at least 1")


def paged_inputs(index: int) -> tuple[StepInput, ...]:
    """PAGED for the group `index`; those of the first group have no suffix."""
    if not index:
        return PAGED
    return tuple(_of_group(one, index) if one.name in PER_GROUP else one for one in PAGED)


def _of_group(one: StepInput, index: int) -> StepInput:
    shape = tuple(f"pages.{index}" if size == "pages" else size for size in one.shape)
    return replace(one, name=f"{one.name}.{index}", shape=shape)


def page_sizes(groups: Sequence[CacheGroup]) -> dict[str, int]:
    """The length of a block table of each group, by its symbol in the shapes of `paged_inputs`."""
    return {f"pages.{index}" if index else "pages": group.pages for index, group in enumerate(groups)}


def owner(groups: Sequence[CacheGroup], layer: str) -> tuple[int, str]:
    """(index of the layer's group, the layer whose name the memory has): with one group, the layer itself.

    A layer that no group names belongs to the first.
    """
    for index, group in enumerate(groups):
        if layer in group.layers:
            place = group.layers.index(layer)
            return index, next(each.layers[place] for each in groups if len(each.layers) > place)
    return 0, layer
