"""Decomposes losses that torch does not decompose, or whose decomposition differs from the ATen op."""

from __future__ import annotations

import torch
from torch import Tensor

from ...passes import torch_private


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, reduction: str,
    ignore_index: int, label_smoothing: float, batch_chunk_size: int, acc_policy: str, acc_dtype: torch.dtype,
    allow_retain_graph: bool, compute_input_grad: bool, compute_linear_weight_grad: bool, compute_linear_bias_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(loss, gradients of input, weight and bias), empty tensors for gradients that are not requested.

    input [N, D], linear_weight [C, D], target int64 [N]; computed in acc_dtype, all rows at once instead of in chunks.
    """
    x, matrix = input.to(acc_dtype), linear_weight.to(acc_dtype)
    scores, wanted, mass = _scores_and_targets(x, matrix, target, linear_bias, weight, ignore_index, label_smoothing)
    loss = -(wanted * scores).sum()
    scale = 1 / mass.sum() if reduction == "mean" else torch.ones_like(loss)
    slope = (wanted.sum(-1, keepdim=True) * scores.exp() - wanted) * scale
    nothing = input.new_empty([0, 0])
    return (
        (loss * scale).to(input.dtype),
        (slope @ matrix).to(input.dtype) if compute_input_grad else nothing,
        (slope.mT @ x).to(input.dtype) if compute_linear_weight_grad else nothing.clone(),
        slope.sum(0).to(input.dtype) if compute_linear_bias_grad else input.new_empty([0]),
    )


def linear_cross_entropy_no_reduction(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None,
    ignore_index: int, batch_chunk_size: int, acc_policy: str, acc_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Loss of each row [N], in the input's dtype; no label smoothing."""
    scores, wanted, _ = _scores_and_targets(
        input.to(acc_dtype), linear_weight.to(acc_dtype), target, linear_bias, weight, ignore_index, 0.0
    )
    return -(wanted * scores).sum(-1).to(input.dtype)


def _scores_and_targets(
    x: Tensor, matrix: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, ignore_index: int,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(log probabilities [N, C], their weights in the loss [N, C], the class weight of each row's target [N]; 0 for ignored rows)."""
    logits = x @ matrix.mT
    logits = logits if bias is None else logits + bias.to(x.dtype)
    classes = matrix.shape[0]
    weights = torch.ones([classes], dtype=x.dtype) if weight is None else weight.to(x.dtype)
    counted = target != ignore_index
    chosen = (torch.arange(classes) == torch.where(counted, target, 0).unsqueeze(-1)).to(x.dtype) * weights
    mass = torch.where(counted, chosen.sum(-1), 0.0)
    wanted = (1 - smoothing) * chosen + (smoothing / classes) * weights
    return torch.log_softmax(logits, -1), torch.where(counted.unsqueeze(-1), wanted, 0.0), mass


def multilabel_margin_loss(self: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """(loss, mask of target classes). A row's targets end at its first -1; torch's decomposition also counts labels after it."""
    rows, labels = torch.atleast_2d(self), torch.atleast_2d(target)
    classes = torch.arange(rows.shape[1])
    given = (labels >= 0).cumprod(1).bool()
    picked = torch.gather(rows, 1, torch.where(given, labels, 0))
    is_target = ((labels.unsqueeze(-1) == classes) & given.unsqueeze(-1)).any(1)
    margins = (1 - picked.unsqueeze(-1) + rows.unsqueeze(1)).clamp_min(0)  # [rows, target, class]
    counted = given.unsqueeze(-1) & ~is_target.unsqueeze(1)
    losses = torch.where(counted, margins, 0).sum((1, 2)) / rows.shape[1]
    loss = (losses.reshape(self.shape[:-1]), losses.mean(), losses.sum())[reduction]
    return loss, is_target.to(self.dtype).reshape(target.shape)


def multi_margin_loss(
    self: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    """torch's decomposition, whose unreduced result for one unbatched sample is [1] instead of 0-d."""
    loss = torch_private.multi_margin_loss(self, target, p, margin, weight, reduction)
    return loss.reshape(target.shape) if reduction == 0 else loss
