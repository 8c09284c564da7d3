"""Decomposes connectionist temporal classification (Graves et al. 2006): ATen's op returns a table whose size depends on the targets.

Takes the arguments of torch.nn.functional.ctc_loss and returns its loss, for arguments that eager torch accepts. Shapes depend only
on the arguments' shapes: tensor lengths are applied as masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from ...passes.torch_private import scan


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """log_probs [time, batch, classes] or [time, classes]; targets [batch, labels], or 1-d: the labels of all sequences concatenated."""
    batched = log_probs.ndim == 3
    steps = log_probs if batched else log_probs.unsqueeze(1)
    counts, labels = _lengths(target_lengths), _rows(targets, target_lengths, batched)
    extended = _between_blanks(labels.long(), blank)
    losses = -_log_likelihood(steps, extended, _lengths(input_lengths), counts, blank)
    if zero_infinity:
        losses = torch.where(losses == inf, 0, losses)
    if reduction in ("mean", 1):
        return (losses / counts.clamp_min(1).to(losses.dtype)).mean()
    if reduction in ("sum", 2):
        return losses.sum()
    return losses if batched else losses.squeeze(0)


def _lengths(lengths: Tensor | Sequence[int]) -> Tensor:
    """int64 [batch]."""
    return torch.as_tensor(lengths, dtype=torch.int64).reshape(-1)


def _rows(targets: Tensor, lengths: Tensor | Sequence[int], batched: bool) -> Tensor:
    """[batch, labels]: the labels of each sequence; elements past its length are arbitrary."""
    if targets.ndim == 2 or not batched:
        return torch.atleast_2d(targets)
    longest = targets.shape[0] if isinstance(lengths, Tensor) else max(lengths, default=0)
    counts = _lengths(lengths)
    places = (counts.cumsum(0) - counts).unsqueeze(1) + torch.arange(longest)
    return targets[places.clamp(max=max(targets.shape[0] - 1, 0))]


def _between_blanks(labels: Tensor, blank: int) -> Tensor:
    """[batch, 2 labels + 1]: blank, label, blank, ..., label, blank."""
    pairs = torch.stack([torch.full_like(labels, blank), labels], -1).flatten(1)
    return torch.nn.functional.pad(pairs, (0, 1), value=blank)


def _log_likelihood(steps: Tensor, labels: Tensor, lengths: Tensor, counts: Tensor, blank: int) -> Tensor:
    """[batch]: log of the summed probability of all paths through `labels`, by the forward recursion over time."""
    places = torch.arange(labels.shape[1])
    emitted = torch.gather(steps, 2, labels.expand(steps.shape[0], -1, -1))  # [time, batch, 2 labels + 1]
    running = (torch.arange(steps.shape[0]).unsqueeze(1) < lengths).unsqueeze(-1)
    before = torch.nn.functional.pad(labels, (2, 0), value=blank)[:, : labels.shape[1]]
    skips = (
        (labels != blank) & (labels != before) & (places >= 2)
    )  # a blank between two different labels may be left out

    def step(paths: Tensor, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        log_probs, goes_on = now
        padded = torch.nn.functional.pad(paths, (2, 0), value=-inf)
        ways = torch.stack([paths, padded[:, 1:-1], torch.where(skips, padded[:, :-2], -inf)])
        following = torch.where(goes_on, torch.logsumexp(ways, 0) + log_probs, paths)
        return following, following.sum()

    # Without any time step a path stays at the first blank; the first step reaches the first blank or the first label.
    start = torch.where(places == 0, 0.0, -inf).to(steps.dtype).expand(labels.shape)
    first = torch.where((places <= 1) & running[0], emitted[0], -inf)
    first = torch.where(running[0], first, start)
    paths = scan(step, first, (emitted[1:], running[1:]))[0] if steps.shape[0] > 1 else first
    ends = 2 * counts.unsqueeze(1)
    return torch.logsumexp(torch.where((places == ends) | (places == ends - 1), paths, -inf), 1)
