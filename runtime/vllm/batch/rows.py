"""The persistent batch: one row of numpy arrays per running request.

A `Request` holds everything; a row is its copy in arrays, so that a step's inputs are gathered without a loop over
requests. Rows are never moved: a step picks the rows it needs. When rows run out, a request that is not in this step
gives up its own (it was preempted, or has to wait) and gets another one when it is scheduled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ...core.errors import FxhloError
from .request import Request
from .sampling import Sampling


class Batch:
    """Rows for `capacity` requests of up to `max_model_len` tokens in blocks of `block_size`."""

    def __init__(self, capacity: int, max_model_len: int, block_size: int, vocab_size: int) -> None:
        self.block_size = block_size
        self.pages = -(-max_model_len // block_size)
        self.sampling = Sampling(capacity, vocab_size, max_model_len)
        # one column more: a request's last token is stored here although it is never computed
        self.tokens = np.zeros((capacity, max_model_len + 1), np.int32)
        self.blocks = np.zeros((capacity, self.pages), np.int32)
        self.computed = np.zeros(capacity, np.int32)
        self.lengths = np.zeros(capacity, np.int32)
        self.requests: list[Request | None] = [None] * capacity
        self.rows: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))

    def remove(self, request_id: str) -> None:
        """Frees the request's row, if it has one."""
        row = self.rows.pop(request_id, None)
        if row is not None:
            self.requests[row] = None
            self._free.append(row)

    def place(self, request: Request, scheduled: Mapping[str, int]) -> int:
        """The request's row, filled from what is known of it. scheduled: requests that keep theirs."""
        row = self.rows.get(request.id)
        if row is None:
            if not self._free:
                self._evict(scheduled)
            row = self.rows[request.id] = self._free.pop()
        self.requests[row] = request
        split = len(request.prompt)
        self.tokens[row, :split] = request.prompt
        self.tokens[row, split : request.length] = request.output
        self.blocks[row, : len(request.blocks)] = request.blocks
        self.computed[row] = request.computed
        self.lengths[row] = request.length
        self.sampling.place(row, request)
        return row

    def _evict(self, scheduled: Mapping[str, int]) -> None:
        for request_id in self.rows:
            if request_id not in scheduled:
                return self.remove(request_id)
        raise FxhloError(
            f"vLLM scheduled more than max_num_seqs={len(self.requests)} requests in one step",
            next_step="report this with the engine's arguments",
        )

    def extend(self, row: int, computed: int, new_blocks: Iterable[int]) -> None:
        """The scheduler's news about a request that has a row: tokens in the cache, blocks that were added."""
        request = self.requests[row]
        assert request is not None
        request.computed = self.computed[row] = computed
        first = len(request.blocks)
        request.blocks.extend(new_blocks)
        self.blocks[row, first : len(request.blocks)] = request.blocks[first:]

    def append(self, row: int, token: int) -> None:
        """Adds a sampled token."""
        request = self.requests[row]
        assert request is not None
        self.tokens[row, request.length] = token
        request.output.append(token)
        self.lengths[row] += 1
        self.sampling.append(row, request, token)

    def inputs(self, rows: np.ndarray, counts: np.ndarray, tokens: int, requests: int) -> dict[str, np.ndarray]:
        """Where each token is and goes: the step's inputs besides sampling, padded to `tokens` and `requests`.

        rows int [n]: the requests of this step; counts int [n]: how many tokens of each are computed.
        """
        total, real = int(counts.sum()), len(rows)
        ends = np.cumsum(counts, dtype=np.int32)
        which = np.repeat(np.arange(real), counts)
        position = np.arange(total, dtype=np.int32) - (ends - counts)[which] + self.computed[rows][which]
        row = rows[which]
        slots = self.blocks[row, position // self.block_size] * self.block_size + position % self.block_size
        starts = np.full(requests + 1, total, np.int32)
        starts[0], starts[1 : real + 1] = 0, ends
        block_tables = np.zeros((requests, self.pages), np.int32)
        block_tables[:real] = self.blocks[rows]
        return {
            "input_ids": _padded(self.tokens[row, position], tokens, 0),
            "positions": _padded(position, tokens, 0),
            "slot_mapping": _padded(slots, tokens, -1),
            "block_tables": block_tables,
            "seq_lens": _padded(self.computed[rows] + counts, requests, 0),
            "query_start_loc": starts,
            "logit_rows": _padded(ends - 1, requests, 0),
        }


def _padded(values: np.ndarray, size: int, fill: int) -> np.ndarray:
    padded = np.full(size, fill, np.int32)
    padded[: len(values)] = values
    return padded
