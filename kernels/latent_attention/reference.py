"""Reference of `fxhlo.latent_attention` in eager torch, and the mask of selected positions."""

from __future__ import annotations

import torch

from ..attention.reference import softmax, visible


def latent_attention(
    query: torch.Tensor,
    latent: torch.Tensor,
    selected: torch.Tensor | None = None,
    *,
    layer: str,
    value_size: int,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    """query [T, N, D], latent [T, D], from position 0 on -> [T, N, value_size].

    All heads share one key per token, its latent, whose first `value_size` elements are also its value: the projections from the
    latent to the heads' keys and values are applied to the query before and to the result after (absorbed). A token attends to
    keys up to its own position, less than `sliding_window` away (0: no window), and, if `selected` int32 [T, K] is present,
    to the positions in its row alone: each at most once, then -1.
    """
    at = torch.arange(query.shape[0], device=query.device)
    seen = visible(at[:, None], at[None, :], sliding_window)
    if selected is not None:
        seen = seen & chosen(selected, query.shape[0])
    keys = latent.float()
    scores = torch.einsum("ihd,jd->hij", query.float(), keys) * scale
    weights = softmax(scores, seen, at[None, :] - at[:, None], None, None, 0.0)
    return torch.einsum("hij,jd->ihd", weights, keys[:, :value_size]).to(query.dtype)


def chosen(selected: torch.Tensor, keys: int) -> torch.Tensor:
    """Mask bool [T, keys] of the positions in the rows of `selected` [T, K]; negative entries are none."""
    mask = torch.zeros(selected.shape[0], keys + 1, dtype=torch.bool, device=selected.device)
    at = torch.where(selected >= 0, selected.long().clamp(max=keys), keys)
    return mask.scatter(1, at, torch.ones_like(at, dtype=torch.bool))[:, :keys]


def fake(query: torch.Tensor, latent: torch.Tensor, *_: object, value_size: int, **__: object) -> torch.Tensor:
    return query.new_empty((*query.shape[:2], value_size))
