"""SampledStep: a started step of a model that generates, until its tokens are on the host.

In order: `Runner.sample` starts the step, and its requests go on as if they had their tokens (`Batch.reserve`); `settle` waits for the
tokens and writes them into the requests; `get_output` makes vLLM's output of them. vLLM calls it once per step, in order, after
the next step was started (asynchronous scheduling) or at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import compat
from .batch.rows import Batch, Reserved

if TYPE_CHECKING:
    from .pending import PendingStep


@dataclass(frozen=True)
class Scheduled:
    """The step that `execute` prepared: its requests, their rows, and how many tokens of each to compute."""

    ids: list[str]
    rows: np.ndarray
    counts: np.ndarray


class SampledStep(compat.AsyncModelRunnerOutput):
    """reserved: the places of the tokens, of those requests that sample. columns: of the log-probabilities that somebody asked for;
    0 for none. prompts: log-probabilities of prompts that are complete. apart: where `get_output` is called in another thread than the
    batch's, it writes nothing, and what fails is also told here."""

    def __init__(
        self,
        step: Scheduled,
        pending: PendingStep,
        batch: Batch,
        reserved: Reserved,
        columns: int,
        prompts: Mapping[str, compat.LogprobsTensors],
        apart: Callable[[Exception], None] | None = None,
    ) -> None:
        self._step = step
        self._pending = pending
        self._batch = batch
        self._reserved = reserved
        self._columns = columns
        self._prompts = prompts
        self._apart = apart
        self._tokens: list[int] | None = None
        pending.send(with_logprobs=columns > 0)

    @property
    def settled(self) -> bool:
        """Whether the requests have their tokens."""
        return self._tokens is not None

    def settle(self) -> list[int]:
        """Waits for the step, once, and writes its tokens into the batch. Returns one for each place of `reserved`."""
        if self._tokens is None:
            tokens = self._read()
            self._batch.settle(self._reserved, tokens)
            self._tokens = tokens.tolist()
        return self._tokens

    def _read(self) -> np.ndarray:
        """Waits for the step. Returns its tokens, one for each place of `reserved`."""
        return self._pending.tokens()[self._reserved.index]

    def get_output(self) -> compat.ModelRunnerOutput:
        """Waits for the step. A request with a partly computed prompt has no token."""
        if self._apart is None:
            return self._output(self.settle())
        try:
            return self._output(self._read().tolist())
        except Exception as problem:
            self._apart(problem)
            raise

    def _output(self, tokens: list[int]) -> compat.ModelRunnerOutput:
        ids = self._step.ids
        sampled: list[list[int]] = [[] for _ in ids]
        for index, token in zip(self._reserved.index.tolist(), tokens, strict=True):
            sampled[index] = [token]
        logprobs = None
        if self._columns:
            token_ids, values, ranks = (part[: len(ids)] for part in self._pending.logprobs())
            logprobs = compat.LogprobsLists(token_ids[:, : self._columns], values[:, : self._columns], ranks)
        return compat.ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=logprobs,
            prompt_logprobs_dict={one: self._prompts.get(one) for one in ids} if self._prompts else {},
        )
