"""Steps of requests over a paged cache of latents, for the tests of the kernel's implementations."""

from __future__ import annotations

import math

import torch

from fxhlo.kernels.paged_latent_attention.cases import Sizes


def batch(
    lengths: list[tuple[int, int]], *, sizes: Sizes, block_size: int, padding: int, selected: int, seed: int
) -> dict[str, torch.Tensor]:
    """Requests as (tokens before this step, tokens of this step) with pages in shuffled order, and `padding` rows of no request.

    Slots that nobody wrote hold NaN. selected: how many positions a row selects, 0 for no such operand.
    """
    generator = torch.Generator().manual_seed(seed)
    heads, nope, rotary, rank, value = sizes
    size = rank + rotary
    requests, pages = len(lengths) + 2, math.ceil(max(map(sum, lengths)) / block_size) + 1
    blocks = requests * pages + 1
    tables = torch.randperm(blocks, generator=generator)[: requests * pages].reshape(requests, pages).int()
    cache = torch.full((blocks, block_size, size), float("nan"))
    slots, starts, chosen = [], [0], []
    for index, (done, new) in enumerate(lengths):
        for at in range(done + new):
            slot = int(tables[index, at // block_size]) * block_size + at % block_size
            if at < done:
                cache.view(-1, size)[slot] = torch.randn(size, generator=generator)
                continue
            slots.append(slot)
            some = torch.randperm(at + 1, generator=generator)[:selected].sort().values
            chosen.append(torch.cat([some, torch.full((selected - len(some),), -1)]))
        starts.append(starts[-1] + new)
    rows = len(slots) + padding
    made = {
        "query": torch.randn(rows, heads, nope + rotary, generator=generator),
        "latent": torch.randn(rows, size, generator=generator),
        "w_uk": torch.randn(heads, nope, rank, generator=generator) * nope**-0.5,
        "w_uv": torch.randn(heads, rank, value, generator=generator) * rank**-0.5,
        "kv_cache": cache,
        "slot_mapping": torch.tensor(slots + [-1] * padding, dtype=torch.int32),
        "block_tables": tables,
        "seq_lens": torch.tensor([*map(sum, lengths), 0, 0], dtype=torch.int32),
        "query_start_loc": torch.tensor(starts + [starts[-1]] * 2, dtype=torch.int32),
    }
    nothing = [torch.full((selected,), -1)] * padding
    return made | ({"selected": torch.stack(chosen + nothing).int()} if selected else {})
