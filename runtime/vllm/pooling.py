"""PoolingRunner: turns vLLM's SchedulerOutput into pooled results: a compiled program makes the hidden states, vLLM's own pooler the rest.

In order: the batch's rows and the program that holds the step, as in runner.py; the hidden states of all tokens, which leave the device
once; vLLM's pooler on the host, with its metadata; the scores of late interaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core.errors import FxhloError
from . import compat
from .batch.pooling import PooledRequest, Pooling
from .runner import Scheduled, StepRunner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import NewRequestData

    from .steps.steps import Steps


class PoolingRunner(StepRunner[PooledRequest]):
    """pooler: the model's, with its weights on the host."""

    def __init__(
        self,
        vllm_config: compat.VllmConfig,
        kv_cache_config: compat.KVCacheConfig,
        steps: Steps,
        pooler: compat.Pooler,
    ) -> None:
        self.pooling = Pooling(vllm_config.scheduler_config.max_num_seqs)
        super().__init__(vllm_config, kv_cache_config, steps, self.pooling)
        self._pooler = pooler
        self._late_interaction = compat.LateInteractionRunner(enable_flash=False)

    def execute(self, output: compat.SchedulerOutput) -> compat.ModelRunnerOutput:
        """Runs the step. A request whose prompt is computed in part has no result yet."""
        self._late_interaction.on_requests_finished(output.finished_req_ids)
        step = self._update(output)
        return compat.EMPTY_MODEL_RUNNER_OUTPUT if step is None else self._pooled(step)

    def sample(self, grammar: compat.GrammarOutput | None) -> compat.ModelRunnerOutput:
        raise FxhloError("sample_tokens was called for a pooling model", next_step="report this as a bug of fxhlo")

    def forget_queries(self, keys: Iterable[str]) -> None:
        """Drops queries of late interaction whose documents will not come."""
        self._late_interaction.release_queries(keys)

    def _request(self, new: NewRequestData, known: PooledRequest | None) -> PooledRequest:
        assert new.prompt_token_ids is not None, "prompts of embeddings are refused"
        assert new.pooling_params is not None and new.pooling_params.task is not None, "the model pools"
        self._pooler.get_pooling_updates(new.pooling_params.task).apply(new.pooling_params)
        self._late_interaction.register_request(new.req_id, new.pooling_params)
        return PooledRequest(
            id=new.req_id,
            params=new.pooling_params,
            prompt=list(new.prompt_token_ids),
            output=[],
            blocks=[list(blocks) for blocks in new.block_ids],
            computed=new.num_computed_tokens,
            seed=0,
            states=compat.PoolingStates(),
        )

    def _pooled(self, step: Scheduled) -> compat.ModelRunnerOutput:
        requests = [self.requests[request_id] for request_id in step.ids]
        computed = self.batch.computed[step.rows]
        for request, before in zip(requests, computed, strict=True):
            if before == 0:
                request.states.clean()  # of chunks before it was preempted
        bucket = self.steps.select(int(step.counts.sum()), len(step.ids))
        frame = self.steps.inputs.frame(bucket)
        inputs = self.batch.inputs(step.rows, step.counts, frame)
        inputs |= self.pooling.inputs(step.rows, step.counts, computed, frame)
        hidden = self.steps.start(bucket, inputs).hidden()[: step.counts.sum()]
        self.batch.computed[step.rows] += step.counts
        metadata = self._metadata(step, requests)
        with torch.no_grad():
            found = self._pooler(hidden_states=hidden, pooling_metadata=metadata)
        finished = metadata.get_pooling_cursor().get_finished_mask()
        found = self._late_interaction.postprocess_pooler_output(found, metadata.pooling_params, step.ids, finished)
        return compat.ModelRunnerOutput(
            req_ids=step.ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(step.ids)},
            pooler_output=_of_finished(found, finished),
        )

    def _metadata(self, step: Scheduled, requests: list[PooledRequest]) -> compat.PoolingMetadata:
        """vLLM's description of the step to its poolers."""
        lengths = np.array([len(request.prompt) for request in requests], np.int32)
        tokens = None
        if any(request.params.requires_token_ids for request in requests):
            tokens = torch.zeros(len(requests), int(lengths.max()), dtype=torch.int64)
            for index, request in enumerate(requests):
                tokens[index, : len(request.prompt)] = torch.tensor(request.prompt)
        metadata = compat.PoolingMetadata(
            prompt_lens=torch.from_numpy(lengths),
            prompt_token_ids=None,
            prompt_token_ids_cpu=tokens,
            pooling_params=[request.params for request in requests],
            pooling_states=[request.states for request in requests],
        )
        lasts = torch.from_numpy(self.batch.computed[step.rows])
        metadata.build_pooling_cursor(step.counts, lasts, device=torch.device("cpu"))
        return metadata


def _of_finished(found: compat.PoolerOutput, finished: list[bool]) -> list[torch.Tensor | None]:
    """The pooler's result of each request; None where its prompt is not computed to the end."""
    rows = [None] * len(finished) if found is None else list(found)
    return [row if done else None for row, done in zip(rows, finished, strict=True)]
