"""The persistent batch: one row of numpy arrays per running request.

A `Request` holds all its state; a row is a copy in arrays, so that a step's inputs are gathered without a loop over
requests. Rows are never moved: a step selects its rows. When no row is free, a request that is not in this step (it was
preempted, or waits) loses its row and gets another when it is scheduled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import FxhloError
from ..steps.inputs import Frame
from .block_tables import BlockTables
from .pooling import Pooling
from .request import Request
from .sampling import Sampling
from .state_rows import StateRows
from .state_slots import StateSlots

FILLS = ("input_ids", "positions", "logit_rows", "seq_lens", "query_start_loc", "state_slots", "fed", "last_rows")
"""The step's inputs that the rows fill; block_tables.py, and sampling.py or pooling.py, fill the others."""


@dataclass(frozen=True)
class Reserved:
    """Places of the tokens that a step samples. index int [n]: of the requests in the step; rows int [n]: of the batch.

    positions int [n]: of the tokens in their requests.
    """

    index: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    requests: list[Request]


UNKNOWN = -1
"""In place of a token that is not on the host yet."""


class Batch:
    """Rows for `capacity` requests of up to `max_model_len` tokens; block_sizes: tokens a block, for each cache group.
    parameters: keeps what is asked for in each row. state_slots: whether the model keeps a state per request. state_group: the cache group
    whose blocks are the rows of these states, where those of prefixes are cached; None: a request has one row."""

    def __init__(
        self,
        capacity: int,
        max_model_len: int,
        block_sizes: Sequence[int],
        parameters: Sampling | Pooling,
        state_slots: bool = False,
        state_group: int | None = None,
    ) -> None:
        self.parameters = parameters
        # one extra column: a request's last token is stored although it is never computed
        self.tokens = np.zeros((capacity, max_model_len + 1), np.int32)
        paged = [size for index, size in enumerate(block_sizes) if index != state_group]
        self.groups = tuple(
            BlockTables(capacity, -(-max_model_len // size), size, index) for index, size in enumerate(paged)
        )
        self.state_rows = None if state_group is None else StateRows(capacity, max_model_len, block_sizes[state_group])
        tables: list[BlockTables | StateRows] = [*self.groups]
        if state_group is not None and self.state_rows is not None:
            tables.insert(state_group, self.state_rows)
        self._tables = tables
        """One for each of vLLM's cache groups."""
        self.slots = StateSlots(capacity if state_slots and state_group is None else 0)
        self.slot = np.zeros(capacity, np.int32)
        self.computed = np.zeros(capacity, np.int32)
        self.lengths = np.zeros(capacity, np.int32)
        self.known = np.zeros(capacity, np.int32)
        """Tokens that are on the host: all but those of steps that are not settled."""
        self.requests: list[Request | None] = [None] * capacity
        self.rows: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def fills(self) -> dict[str, tuple[str, ...]]:
        """Each part of the batch, with the step's inputs that it fills."""
        groups = {f"cache group {group.index}": group.fills for group in self.groups}
        return {"rows": FILLS, "parameters": self.parameters.fills, **groups}

    def remove(self, request_id: str) -> None:
        """Frees the request's row and its state's slot, where it has them."""
        self.slots.free(request_id)
        self._leave(request_id)

    def _leave(self, request_id: str) -> None:
        """Frees the request's row, if it has one; its state stays where it is."""
        row = self.rows.pop(request_id, None)
        if row is not None:
            self.requests[row] = None
            self._free.append(row)

    def place(self, request: Request, scheduled: Mapping[str, int]) -> int:
        """Assigns a row to the request, whose tokens are all known, and copies its state. scheduled: the requests of this step, which
        keep their rows."""
        assert not request.unknown, "a step is settled before its requests move"
        row = self.rows.get(request.id)
        if row is None:
            if not self._free:
                self._evict(scheduled)
            row = self.rows[request.id] = self._free.pop()
        self.requests[row] = request
        split = len(request.prompt)
        self.tokens[row, :split] = request.prompt
        self.tokens[row, split : request.length] = request.output
        for table, blocks in zip(self._tables, request.blocks, strict=True):
            table.place(row, blocks)
        self.computed[row] = request.computed
        self.lengths[row] = self.known[row] = request.length
        self.slot[row] = self.slots.of(request.id, request.computed)
        self.parameters.place(row, request)
        return row

    def _evict(self, scheduled: Mapping[str, int]) -> None:
        for request_id in self.rows:
            if request_id not in scheduled:
                return self._leave(request_id)
        raise FxhloError(
            f"vLLM scheduled more than max_num_seqs={len(self.requests)} requests in one step",
            next_step="report this with the engine's arguments",
        )

    def extend(self, row: int, computed: int, new_blocks: Sequence[Sequence[int]] | None) -> None:
        """Updates a row by the scheduler's output: tokens in the cache, and blocks that were added to each group."""
        request = self._request(row)
        request.computed = self.computed[row] = computed
        if new_blocks is None:
            return
        for table, blocks, more in zip(self._tables, request.blocks, new_blocks, strict=True):
            table.place(row, more, first=len(blocks))
            blocks.extend(more)

    def state_moves(self, rows: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
        """(from, to): the rows of the states that are copied before a step. rows, counts: as for `inputs`."""
        return [] if self.state_rows is None else self.state_rows.moves(rows, self.computed[rows], counts)

    def reserve(self, rows: np.ndarray, counts: np.ndarray) -> Reserved:
        """Counts a step's tokens as computed, and gives each request that samples in it a place for its token.

        rows int [n]: of the step's requests; counts int [n]: number of tokens that it computes of each.
        """
        self.computed[rows] += counts
        index = np.flatnonzero(self.computed[rows] >= self.lengths[rows])
        done = rows[index]
        requests = [self._request(row) for row in done.tolist()]
        for request in requests:
            request.output.append(UNKNOWN)
            request.unknown += 1
        positions = self.lengths[done]
        self.lengths[done] += 1
        self.parameters.reserve(done)
        return Reserved(index, done, positions, requests)

    def settle(self, reserved: Reserved, tokens: np.ndarray) -> None:
        """Writes sampled tokens int [n] into their places, in the order of the steps. A request may have lost its row meanwhile."""
        for request, position, token in zip(
            reserved.requests, reserved.positions.tolist(), tokens.tolist(), strict=True
        ):
            request.output[position - len(request.prompt)] = token
            request.unknown -= 1
        here = [self.requests[row] is one for row, one in zip(reserved.rows.tolist(), reserved.requests, strict=True)]
        rows, positions = reserved.rows[here], reserved.positions[here]
        self.tokens[rows, positions] = tokens[here]
        self.known[rows] = positions + 1
        self.parameters.settle(rows, [self._request(row) for row in rows.tolist()], tokens[here])

    def _request(self, row: int) -> Request:
        request = self.requests[row]
        assert request is not None
        return request

    def inputs(self, rows: np.ndarray, counts: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        """Returns the step's inputs except for sampling, padded to the program's sizes.

        rows int [n]: of the step's requests; counts int [n]: number of tokens to compute of each.
        """
        total, real = int(counts.sum()), len(rows)
        ends = np.cumsum(counts, dtype=np.int32)
        which = np.repeat(np.arange(real), counts)
        position = np.arange(total, dtype=np.int32) - (ends - counts)[which] + self.computed[rows][which]
        row = rows[which]
        starts = np.full(frame.sizes["requests"] + 1, total, np.int32)
        starts[0], starts[1 : real + 1] = 0, ends
        lengths = self.computed[rows] + counts
        inputs = frame.filled(
            {
                "input_ids": self.tokens[row, position],
                "positions": position,
                "logit_rows": ends - 1,
                "seq_lens": lengths,
                "query_start_loc": starts,
                "state_slots": self.slot[rows] if self.state_rows is None else self.state_rows.after(rows, lengths),
            }
        )
        if "fed" in frame.shapes:
            samples = lengths >= self.lengths[rows]
            inputs["fed"] = frame.padded("fed", np.where(position < self.known[row], -1, row))
            inputs["last_rows"] = frame.padded("last_rows", np.where(samples, rows, -1))
        for group in self.groups:
            inputs |= group.inputs(rows, row, position, frame)
        return inputs
