"""Which bytes of a tensor's memory were read or written, whatever the views through which that was done."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """A mode that sees what is read and written while vLLM loads a model."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch would import its compiler to be sure


@dataclass
class Touched:
    """Bytes of one storage that were read or written: dense ranges (start, end), and views that are not dense."""

    runs: list[tuple[int, int]] = field(default_factory=list)
    views: list[torch.Tensor] = field(default_factory=list)

    def add(self, view: torch.Tensor) -> None:
        if not view.numel():
            return
        start = int(view.storage_offset()) * view.itemsize
        if _is_dense(view):
            self.runs.append((start, start + int(view.nbytes)))
        else:
            self.views.append(outline(view))

    def missing(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A bool mask of the tensor's shape, True where it was not touched; None if all of it was."""
        first = tensor.storage_offset() * tensor.itemsize
        last = first + tensor.nbytes
        covered = first
        for start, end in sorted(self.runs):
            if start > covered:
                break
            covered = max(covered, end)
        if covered >= last:
            return None
        left = torch.ones(last - first, dtype=torch.bool)
        for start, end in self.runs:
            left[max(start - first, 0) : max(end - first, 0)] = False
        for view in self.views:
            offset = view.storage_offset() * view.itemsize - first
            if 0 <= offset < len(left):
                byte_strides = [stride * view.itemsize for stride in view.stride()]
                left.as_strided([*view.shape, view.itemsize], [*byte_strides, 1], offset).fill_(False)
        per_element = left.view(-1, tensor.itemsize).any(1)
        missing = per_element.as_strided(tensor.shape, tensor.stride()) if _is_dense(tensor) else per_element
        return missing if bool(missing.any()) else None


def outline(view: torch.Tensor) -> torch.Tensor:
    """A meta tensor with the view's dtype, shape, strides and offset."""
    size = max(view.storage_offset() + sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True)) + 1, 0)
    base = torch.empty(size, dtype=view.dtype, device="meta")
    return base.as_strided(view.shape, view.stride(), view.storage_offset())


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill one contiguous range of memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def storage_of(tensor: torch.Tensor) -> int:
    """Tells the memory of a tensor from that of others, as long as it lives."""
    return tensor.untyped_storage()._cdata
