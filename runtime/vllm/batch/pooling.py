"""What requests to a pooling model ask for, by row, and what their poolers keep: of two texts, where the second begins.

A cross-encoder reads a query and a document as one prompt and is told of each token which of them it is from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ....passes.step_inputs import TOKEN_TYPES
from ..steps.inputs import Frame
from .request import Request

if TYPE_CHECKING:
    from vllm import PoolingParams

    from ..compat import PoolingStates

SECOND_TEXT = "compressed_token_type_ids"
"""vLLM's name, in a request's `extra_kwargs`, for the position from which on the token type is 1."""
NOWHERE = 2**31 - 1


@dataclass
class PooledRequest(Request):
    """states: the hidden states of a prompt's earlier chunks, for poolers that need all of them."""

    params: PoolingParams  # type: ignore[assignment]  # in place of how to sample
    states: PoolingStates = field(kw_only=True)


class Pooling:
    """Pooling parameters of each row."""

    fills = tuple(one.name for one in TOKEN_TYPES)

    def __init__(self, capacity: int) -> None:
        self.second = np.full(capacity, NOWHERE, np.int32)
        """The first position of the second text."""

    def place(self, row: int, request: Request) -> None:
        """Copies the request's parameters into its row."""
        assert isinstance(request, PooledRequest)
        self.second[row] = (request.params.extra_kwargs or {}).get(SECOND_TEXT, NOWHERE)

    def reserve(self, rows: np.ndarray) -> None:
        raise AssertionError("a request to a pooling model gets no tokens")

    def settle(self, rows: np.ndarray, requests: Sequence[Request], tokens: np.ndarray) -> None:
        raise AssertionError("a request to a pooling model gets no tokens")

    def inputs(
        self, rows: np.ndarray, counts: np.ndarray, computed: np.ndarray, frame: Frame
    ) -> Mapping[str, np.ndarray]:
        """Returns the token types. rows, counts, computed int [n]: of each request its row, and its tokens in this and earlier steps."""
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        position = within + np.repeat(computed, counts)
        return frame.filled({name: position >= np.repeat(self.second[rows], counts) for name in self.fills})
