"""What ragged paged attention must do at least, with the cache full: each request as long as its share of the pages allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import Operands


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """(flops, bytes): keys and values of every context read once, the step's own written; rows shared out evenly.

    The lengths of contexts are data, so they are taken as they are where the memory is used up: pages / requests, and no
    more than a block table holds. A sliding window bounds them for every row.
    """
    named = operands.named
    (rows, heads, head_size), cache = named["query"].shape, named["kv_cache"]
    blocks, block_size, pairs, _ = cache.shape
    requests, pages = named["block_tables"].shape
    each = max(rows / requests, 1.0)  # rows of a request
    requests = min(requests, rows)
    context = min(blocks / requests, pages) * block_size
    window = attributes["sliding_window"] or context
    seen = min(max(context - (each - 1) / 2, 1.0), window)  # keys that a row looks at, on average: itself and before
    read = min(context, window + each - 1)
    flops = 4.0 * rows * heads * head_size * seen
    return flops, (requests * read + rows) * pairs * head_size * cache.dtype.itemsize
