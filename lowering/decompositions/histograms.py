"""Decomposes histograms: finds the bin of each element, then counts the elements of each bin.

Each function has the parameters of its ATen schema; they run in eager torch, so tests compare them with the op directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor


def histc(self: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    """[bins] counts of elements in bins of equal width; elements outside [min, max] are not counted. min == max == 0 takes the data's range."""
    flat = self.reshape(-1)
    low, high = _range(flat, min, max, min == max, 1)
    return _counted(flat, low, high, bins, None).to(self.dtype)


def histogram(
    self: Tensor, bins: int = 100, *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(counts [bins], edges [bins + 1]) of bins of equal width."""
    flat = self.reshape(-1)
    edges = _edges(flat, bins, range)
    return _histogram([flat], [edges], weight, density), edges


def histogram_of_edges(
    self: Tensor, bins: Tensor, *, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    """(counts, edges) of the bins between the sorted edges `bins`."""
    return _histogram([self.reshape(-1)], [bins], weight, density), bins.clone()


def histogramdd_edges(
    self: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Bin edges of each coordinate of the points [..., coordinates]; `range` holds a lower and an upper end per coordinate."""
    columns = self.reshape(-1, self.shape[-1]).unbind(1)
    ends = [None if range is None else range[2 * index : 2 * index + 2] for index, _ in enumerate(columns)]
    return [_edges(column, count, end) for column, count, end in zip(columns, bins, ends, strict=True)]


def histogramdd(
    self: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> Tensor:  # fmt: skip
    return histogramdd_of_edges(self, histogramdd_edges(self, bins, range=range), weight=weight, density=density)


def histogramdd_of_edges(
    self: Tensor, bins: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    return _histogram(self.reshape(-1, self.shape[-1]).unbind(1), bins, weight, density)


def _histogram(columns: Sequence[Tensor], edges: Sequence[Tensor], weight: Tensor | None, density: bool) -> Tensor:
    """Count (or summed weight) of the points in each cell, with one dimension per column of coordinates."""
    sizes = [edge.shape[0] - 1 for edge in edges]
    cell: Tensor = torch.zeros_like(columns[0], dtype=torch.int64)
    inside = torch.ones_like(columns[0], dtype=torch.bool)
    for column, edge, size in zip(columns, edges, sizes, strict=True):
        place = torch.searchsorted(edge, column, right=True) - 1
        cell = cell * size + torch.where(column == edge[-1], size - 1, place)  # the last bin holds its upper edge
        inside = inside & (column >= edge[0]) & (column <= edge[-1])
    cells = prod(sizes)
    amounts = torch.ones_like(columns[0]) if weight is None else weight.reshape(-1)
    total = torch.zeros(cells + 1, dtype=columns[0].dtype).scatter_add(0, torch.where(inside, cell, cells), amounts)
    counts = total[:cells].reshape(sizes)
    if density:
        counts = counts / counts.sum()
        for dim, edge in enumerate(edges):
            counts = counts / (edge[1:] - edge[:-1]).reshape([-1 if dim == one else 1 for one, _ in enumerate(edges)])
    return counts


def _edges(flat: Tensor, bins: int, ends: Sequence[float] | None) -> Tensor:
    """[bins + 1] equally spaced edges, each computed from the nearer end, as torch.linspace does."""
    low, high = _range(flat, ends[0] if ends else 0, ends[1] if ends else 0, not ends or ends[0] == ends[1], 0.5)
    steps = torch.arange(bins + 1, dtype=flat.dtype)
    step = (high - low) / bins
    return torch.where(steps < (bins + 1) / 2, low + steps * step, high - (bins - steps) * step)


def _range(flat: Tensor, low: Any, high: Any, own: bool, widening: float) -> tuple[Tensor, Tensor]:
    """The given range, or with `own` and low 0 the data's; an empty own range is widened by `widening` on both sides. Both ends are 0-d."""
    if not own:
        return torch.full([], low, dtype=flat.dtype), torch.full([], high, dtype=flat.dtype)
    if low != 0 or flat.shape[0] == 0:
        smallest = largest = torch.full([], low, dtype=flat.dtype)
    else:
        smallest, largest = flat.min(), flat.max()
    same = smallest == largest
    return torch.where(same, smallest - widening, smallest), torch.where(same, largest + widening, largest)


def _counted(flat: Tensor, low: Tensor, high: Tensor, bins: int, weight: Tensor | None) -> Tensor:
    """[bins] counts, or summed weights, of the elements in [low, high]."""
    inside = (flat >= low) & (flat <= high)
    place = ((flat - low) / (high - low) * bins).to(torch.int64)
    place = torch.where(inside, torch.clamp(place, 0, bins - 1), bins)
    ones = torch.ones_like(flat) if weight is None else weight
    return torch.zeros(bins + 1, dtype=ones.dtype).scatter_add(0, place, ones)[:bins]
