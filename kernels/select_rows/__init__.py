"""`fxhlo.select_rows`: the rows of the hidden states that need logits. `passes/fx/select_rows.py` moves it
up the graph, so that the last layer computes those rows only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Kernel

if TYPE_CHECKING:
    import torch


def select_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """values [T, ...], rows int32 [R] in [0, T) -> [R, ...]."""
    return values.index_select(0, rows)


def fake(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return values.new_empty((rows.shape[0], *values.shape[1:]))


KERNEL = Kernel(
    name="select_rows",
    version=1,
    schema="select_rows(Tensor values, Tensor rows) -> Tensor",
    reference=select_rows,
    fake=fake,
    dtypes={"rows": ("int32",)},
    source="aten::index_select; vllm/v1/worker/gpu_model_runner.py logits_indices",
)
