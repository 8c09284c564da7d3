"""Names of a checkpoint's tensors that vLLM's class has under others.

transformers' classes and the files that it writes differ in names for some families, and vLLM's class follows the one or the other.
Comes in: a name as the file has it. Goes out: the one that transformers' class has, where vLLM's model has a parameter of that name and
none of the file's; else the name itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import nn


class CheckpointNames:
    """model: vLLM's. model_type: as config.json has it."""

    def __init__(self, model: nn.Module, model_type: str) -> None:
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._model_type = model_type
        stacked = getattr(model, "packed_modules_mapping", None) or {}
        parts = {part for name in self._parameters for part in name.split(".")}
        self._known = parts.union(*stacked.values())

    def of(self, name: str) -> str:
        """The model's name for the tensor."""
        if self._known.issuperset(part for part in name.split(".") if not part.isdigit()):
            return name  # nearly always: transformers' table is not read
        for rename in self._renames:
            renamed, _ = rename(name)
            if renamed in self._parameters and name not in self._parameters:
                return renamed
        return name

    @cached_property
    def _renames(self) -> list[Callable[[str], Any]]:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        found = get_checkpoint_conversion_mapping(self._model_type) or []
        return [one.rename_source_key for one in found if isinstance(one, WeightRenaming)]
