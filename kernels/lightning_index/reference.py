"""Reference of `fxhlo.lightning_index` in eager torch, and the choice of the highest scores."""

from __future__ import annotations

import torch


def lightning_index(
    query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor, *, layer: str, count: int
) -> torch.Tensor:
    """query [T, H, D], key [T, D], weights [T, H], from position 0 on -> int32 [T, count].

    A position's score is the sum over heads of weights * relu(query . key), in float32. Of the positions up to its own, a row
    has the `count` with the highest scores, in rising order, then -1 where it has fewer. Which of equal scores is chosen is open.
    """
    at = torch.arange(query.shape[0], device=query.device)
    products = torch.einsum("ihd,jd->ihj", query.float(), key.float()).relu()
    scores = torch.einsum("ih,ihj->ij", weights.float(), products)
    return highest(torch.where(at[None, :] <= at[:, None], scores, float("-inf")), count)


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """int32 [T, count]: the places of the `count` highest of scores [T, keys] above -inf, in rising order, then -1."""
    nothing = scores.shape[1]
    scores = torch.nn.functional.pad(scores, (0, count), value=float("-inf"))
    values, places = scores.topk(count, dim=1)
    places = torch.where(values > float("-inf"), places, nothing).sort(dim=1).values
    return torch.where(places < nothing, places, -1).int()


def fake(query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor, *, count: int, **_: object) -> torch.Tensor:
    return query.new_empty((query.shape[0], count), dtype=torch.int32)
