"""PendingStep: a step that was started and not awaited; its results stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...passes.step_inputs import HIDDEN
from ..core import pjrt


@dataclass(frozen=True)
class PendingStep:
    """results: device arrays by name: RESULTS of passes/step_inputs.py, or HIDDEN."""

    results: Mapping[str, pjrt.Buffer]

    def send(self, *, with_logprobs: bool) -> None:
        """Has the results copied to the host as soon as they are there; waits for nothing."""
        for name, result in self.results.items():
            if with_logprobs or name == "tokens":
                result.copy_to_host_async()

    def tokens(self) -> np.ndarray:
        """Waits for the step and returns its tokens, int32 [requests]."""
        return pjrt.get(self.results["tokens"])

    def hidden(self) -> torch.Tensor:
        """Waits for the step of a pooling model and returns its hidden states, [tokens, size], on the host."""
        values = pjrt.get(self.results[HIDDEN])
        bits = values.view(np.int16) if values.dtype.itemsize == 2 else values
        return torch.from_numpy(bits.copy()).view(getattr(torch, values.dtype.name))

    def logprobs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Waits for the step; returns ids int32 [requests, n + 1], values float32 [requests, n + 1], ranks int32 [requests].

        Zeros where the step's `logprobs_enabled` was 0.
        """
        ids, values, ranks = (pjrt.get(self.results[f"logprob_{part}"]) for part in ("ids", "values", "ranks"))
        return ids, values, ranks
