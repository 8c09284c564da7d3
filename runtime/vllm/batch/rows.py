"""The persistent batch: one row of numpy arrays per running request.

A `Request` holds everything; a row is its copy in arrays, so that a step's inputs are gathered without a loop over
requests. Rows are never moved: a step picks the rows it needs. When rows run out, a request that is not in this step
gives up its own (it was preempted, or has to wait) and gets another one when it is scheduled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...core.errors import FxhloError
from ..steps.inputs import Frame
from . import sampling
from .block_tables import BlockTables
from .request import Request
from .sampling import Sampling

FILLS = ("input_ids", "positions", "logit_rows", "seq_lens", "query_start_loc")
"""The step's inputs that the rows fill; block_tables.py and sampling.py fill the others."""


class Batch:
    """Rows for `capacity` requests of up to `max_model_len` tokens; block_sizes: tokens a block, for each cache group."""

    def __init__(self, capacity: int, max_model_len: int, block_sizes: Sequence[int], vocab_size: int) -> None:
        self.sampling = Sampling(capacity, vocab_size)
        # one column more: a request's last token is stored here although it is never computed
        self.tokens = np.zeros((capacity, max_model_len + 1), np.int32)
        self.groups = tuple(
            BlockTables(capacity, -(-max_model_len // size), size, index) for index, size in enumerate(block_sizes)
        )
        self.computed = np.zeros(capacity, np.int32)
        self.lengths = np.zeros(capacity, np.int32)
        self.requests: list[Request | None] = [None] * capacity
        self.rows: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def fills(self) -> dict[str, tuple[str, ...]]:
        """The step's inputs that each part of the batch fills."""
        groups = {f"cache group {group.index}": group.fills for group in self.groups}
        return {"rows": FILLS, "sampling": sampling.FILLS, **groups}

    def remove(self, request_id: str) -> None:
        """Frees the request's row, if it has one."""
        row = self.rows.pop(request_id, None)
        if row is not None:
            self.requests[row] = None
            self._free.append(row)

    def place(self, request: Request, scheduled: Mapping[str, int]) -> int:
        """The request's row, with everything copied into it. scheduled: requests of this step, which keep theirs."""
        row = self.rows.get(request.id)
        if row is None:
            if not self._free:
                self._evict(scheduled)
            row = self.rows[request.id] = self._free.pop()
        self.requests[row] = request
        split = len(request.prompt)
        self.tokens[row, :split] = request.prompt
        self.tokens[row, split : request.length] = request.output
        for group, blocks in zip(self.groups, request.blocks, strict=True):
            group.place(row, blocks)
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

    def extend(self, row: int, computed: int, new_blocks: Sequence[Sequence[int]] | None) -> None:
        """The scheduler's news about a request that has a row: tokens in the cache, blocks that were added to each group."""
        request = self._request(row)
        request.computed = self.computed[row] = computed
        if new_blocks is None:
            return
        for group, blocks, more in zip(self.groups, request.blocks, new_blocks, strict=True):
            group.place(row, more, first=len(blocks))
            blocks.extend(more)

    def append(self, row: int, token: int) -> None:
        """Adds a sampled token."""
        request = self._request(row)
        self.tokens[row, request.length] = token
        request.output.append(token)
        self.lengths[row] += 1
        self.sampling.append(row, request, token)

    def _request(self, row: int) -> Request:
        request = self.requests[row]
        assert request is not None
        return request

    def inputs(self, rows: np.ndarray, counts: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        """Where each token is and goes: the step's inputs besides sampling, padded to the program's sizes.

        rows int [n]: the requests of this step; counts int [n]: how many tokens of each are computed.
        """
        total, real = int(counts.sum()), len(rows)
        ends = np.cumsum(counts, dtype=np.int32)
        which = np.repeat(np.arange(real), counts)
        position = np.arange(total, dtype=np.int32) - (ends - counts)[which] + self.computed[rows][which]
        row = rows[which]
        starts = frame.blank("query_start_loc")
        starts[1 : real + 1], starts[real + 1 :] = ends, total
        inputs = {
            "input_ids": frame.padded("input_ids", self.tokens[row, position]),
            "positions": frame.padded("positions", position),
            "logit_rows": frame.padded("logit_rows", ends - 1),
            "seq_lens": frame.padded("seq_lens", self.computed[rows] + counts),
            "query_start_loc": starts,
        }
        for group in self.groups:
            inputs |= group.inputs(rows, row, position, frame)
        return inputs
