"""Reference of `fxhlo.latent_attention` in eager torch, and the mask of selected positions."""

from __future__ import annotations

import torch

from ..attention.reference import softmax, visible


def latent_attention(
    query: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    selected: torch.Tensor | None = None,
    *,
    layer: str,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    """query [T, N, P + R], latent [T, L + R], w_uk [N, P, L], w_uv [N, L, V], from position 0 on -> [T, N, V].

    A token's latent is what its keys and values are made of, c [L], and a rotary part [R] that all heads' keys share: head n has
    the key [w_uk[n] c, rotary] and the value c w_uv[n]. A token attends to keys up to its own position, less than
    `sliding_window` away (0: no window), and, if `selected` int32 [T, K] is present, to the positions in its row alone: each at
    most once, then -1.

    Computed here, in float32, in the absorbed form: w_uk is applied to the query, so that all heads share one key per token, its
    latent, whose first L elements are also its value, and w_uv to what is attended to.
    """
    at = torch.arange(query.shape[0], device=query.device)
    seen = visible(at[:, None], at[None, :], sliding_window)
    if selected is not None:
        seen = seen & chosen(selected, query.shape[0])
    keys = latent.float()
    scores = torch.einsum("ihd,jd->hij", absorbed(query, w_uk), keys) * scale
    weights = softmax(scores, seen, at[None, :] - at[:, None], None, None, 0.0)
    attended = torch.einsum("hij,jd->ihd", weights, keys[:, : w_uv.shape[1]])
    return torch.einsum("ihl,hlv->ihv", attended, w_uv.float()).to(query.dtype)


def absorbed(query: torch.Tensor, w_uk: torch.Tensor) -> torch.Tensor:
    """Queries in the space of the latents: query [T, N, P + R], w_uk [N, P, L] -> float32 [T, N, L + R]."""
    nope, rotary = query.float().split([w_uk.shape[1], query.shape[2] - w_uk.shape[1]], dim=2)
    return torch.cat([torch.einsum("ihp,hpl->ihl", nope, w_uk.float()), rotary], dim=2)


def chosen(selected: torch.Tensor, keys: int) -> torch.Tensor:
    """Mask bool [T, keys] of the positions in the rows of `selected` [T, K]; negative entries are none."""
    mask = torch.zeros(selected.shape[0], keys + 1, dtype=torch.bool, device=selected.device)
    at = torch.where(selected >= 0, selected.long().clamp(max=keys), keys)
    return mask.scatter(1, at, torch.ones_like(at, dtype=torch.bool))[:, :keys]


def fake(
    query: torch.Tensor, latent: torch.Tensor, w_uk: torch.Tensor, w_uv: torch.Tensor, *_: object, **__: object
) -> torch.Tensor:
    return query.new_empty((*query.shape[:2], w_uv.shape[2]))
