"""Block tables: for each group of states whose blocks vLLM assigns together, the blocks that hold a row's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..steps.inputs import Frame


class BlockTables:
    """Tables of `capacity` rows of `pages` blocks of `block_size` tokens. index: of the group among vLLM's cache groups."""

    def __init__(self, capacity: int, pages: int, block_size: int, index: int = 0) -> None:
        self.block_size = block_size
        self.index = index
        self.tables = np.zeros((capacity, pages), np.int32)
        suffix = f".{index}" if index else ""
        self.fills = (f"slot_mapping{suffix}", f"block_tables{suffix}")
        """Names of the step's inputs that this group fills."""

    def place(self, row: int, blocks: Sequence[int], first: int = 0) -> None:
        """Writes a request's block numbers to its row, starting at block `first`."""
        self.tables[row, first : first + len(blocks)] = blocks

    def inputs(self, rows: np.ndarray, row: np.ndarray, position: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        """rows int [n]: of each request; row, position int [T]: of each token. Returns slots [tokens], tables [requests, pages]."""
        slots = self.tables[row, position // self.block_size] * self.block_size + position % self.block_size
        slot_mapping, block_tables = self.fills
        return frame.filled({slot_mapping: slots, block_tables: self.tables[rows]})
