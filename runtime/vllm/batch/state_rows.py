"""State rows where the states of prefixes are cached: those that vLLM assigns, a row for each block of tokens that a state is kept at the end of.

A request's state after a step is in the row of the block in which the step's last token is. A step that ends in another block than the one
before begins with a copy, so that the earlier row keeps the state at the end of its block, for this request and others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.errors import FxhloError


class StateRows:
    """Tables of `capacity` rows of the batch: which rows of the states each request has, for blocks of `block_size` tokens; 0 is none."""

    def __init__(self, capacity: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.tables = np.zeros((capacity, -(-max_model_len // block_size)), np.int32)

    def place(self, row: int, blocks: Sequence[int], first: int = 0) -> None:
        """Writes a request's rows, in the order of its blocks of tokens, starting at block `first`."""
        self.tables[row, first : first + len(blocks)] = blocks

    def after(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The row of each request's state after so many tokens, which are at least one. rows int [n]: of the batch; lengths int [n]."""
        return self.tables[rows, (lengths - 1) // self.block_size]

    def moves(self, rows: np.ndarray, computed: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
        """(from, to): the copies before a step that computes `counts` tokens after `computed` ones. Raises FxhloError where a request has no row."""
        to = self.after(rows, computed + counts)
        source = np.where(computed > 0, self.after(rows, np.maximum(computed, 1)), to)
        if not (to.all() and source.all()):
            raise FxhloError(
                "vLLM scheduled a request whose state has no row", next_step="report this with the engine's arguments"
            )
        moved = np.flatnonzero(source != to)
        return list(zip(source[moved].tolist(), to[moved].tolist(), strict=True))
