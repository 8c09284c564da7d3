"""StateRows: how many rows the states with one per request have where the states of prefixes are cached, and the memory for them.

A running request has one row, and another while its state moves on from a place where it is kept. The rows beyond that keep states of
prefixes; they take a quarter of the KV cache's memory, and are no more than the blocks, of which each could end a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 4
"""The part of the KV cache's memory that keeps states of prefixes is one of so many."""


@dataclass(frozen=True)
class StateRows:
    """requests: that run at once, with a row for each besides row 0, which is for none. row: bytes of a row in all layers. block: bytes of one KV
    block in all layers; 0 where a model has no attention, so that vLLM's blocks are the rows."""

    requests: int
    row: int
    block: int = 0

    @property
    def fixed(self) -> int:
        """Rows whatever the cache's memory: one a request, and row 0."""
        return self.requests + 1

    @property
    def least(self) -> int:
        """Bytes of the fewest rows that are not fixed: another one a request, where vLLM's blocks are not the rows."""
        return self.requests * self.row if self.block else 0

    def of(self, blocks: int) -> int:
        """All rows, beside so many KV blocks."""
        return self.fixed + self._more(blocks) if self.block else blocks

    def _more(self, blocks: int) -> int:
        share = blocks * self.block // ((SHARE - 1) * self.row)
        return max(self.requests, min(blocks, share))

    def bytes_of(self, blocks: int) -> int:
        """Bytes of so many blocks and of the rows that are not fixed."""
        if not self.block:
            return max(0, blocks - self.fixed) * self.row
        return blocks * self.block + self._more(blocks) * self.row

    def blocks_in(self, room: int) -> int:
        """The most blocks that fit into `room` bytes with the rows that are not fixed; 0 or less where none do."""
        if not self.block:
            return self.fixed + room // self.row
        fewest = (room - self.least) // self.block
        each = room // (self.block + self.row)
        shared = (SHARE - 1) * room // (SHARE * self.block)
        return min(fewest, max(each, shared))
