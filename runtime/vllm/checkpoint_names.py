"""Names of a checkpoint's tensors that vLLM's class has under others.

transformers' classes and the files that it writes differ in names for some families, and vLLM's class follows the one or the other.
Comes in: a name as the file has it. Goes out: the one that transformers' class has, where it differs in one part and vLLM's model has more of
that path than of the file's; else the name itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import nn

from .folder import EXPERT


class CheckpointNames:
    """model: vLLM's. model_type: as config.json has it. experts: how many have weights, in a mixture with zero experts (LongCat)."""

    def __init__(self, model: nn.Module, model_type: str, experts: int | None = None) -> None:
        self._experts = experts
        self._model_type = model_type
        self._paths = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self._paths |= {name for name, _ in model.named_parameters(remove_duplicate=False)}
        stacked = getattr(model, "packed_modules_mapping", None) or {}
        self._known = {part for path in self._paths for part in path.split(".")}.union(*stacked.values())

    def of(self, name: str) -> str:
        """The model's name for the tensor."""
        parts = name.split(".")
        if ".".join(parts[:-2]) in self._paths and self._known.issuperset(parts):
            return name  # nearly always: transformers' table is not read
        for rename in self._renames:
            renamed, _ = rename(name)
            others = renamed.split(".")
            one_differs = len(others) == len(parts) and sum(a != b for a, b in zip(parts, others, strict=True)) == 1
            if one_differs and self._depth(others) > self._depth(parts):
                return renamed
        return name

    def _depth(self, parts: list[str]) -> int:
        """Of how many parts of a name the model has the path."""
        return max(count for count in range(len(parts) + 1) if ".".join(parts[:count]) in self._paths)

    def is_unused(self, name: str) -> bool:
        """Whether the tensor is a zero expert's, which gives its input back: transformers stores one that nobody reads."""
        match = EXPERT.match(name) if self._experts is not None else None
        return match is not None and match.group(2) is not None and int(match.group(2)) >= (self._experts or 0)

    @cached_property
    def _renames(self) -> list[Callable[[str], Any]]:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        found = get_checkpoint_conversion_mapping(self._model_type) or []
        return [one.rename_source_key for one in found if isinstance(one, WeightRenaming)]
