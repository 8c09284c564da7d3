"""Runner: turns vLLM's SchedulerOutput into its ModelRunnerOutput with one call of a compiled program.

`execute` updates the batch, `sample` runs the step: between the two vLLM computes which tokens each structured output
allows, and the program samples. In order: the batch's rows (batch/rows.py), the program that holds the step
(`Steps.select`), its inputs (`Batch.inputs`, `Sampling.inputs`), the results on the device (pending.py), the tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from ..core.errors import FxhloError, UnsupportedError
from . import compat
from .batch.prompt_logprobs import Part, collect
from .batch.request import PromptLogprobs, Request
from .batch.rows import Batch
from .batch.sampling import Sampling
from .sampled import SampledStep, Scheduled
from .states.groups import state_group_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData

    from .batch.pooling import Pooling
    from .steps.steps import Steps


R = TypeVar("R", bound=Request)


class StepRunner(ABC, Generic[R]):
    """Follows the scheduler: owns the requests and the batch; `steps` owns the programs. parameters: of the batch's rows."""

    def __init__(
        self,
        vllm_config: compat.VllmConfig,
        kv_cache_config: compat.KVCacheConfig,
        steps: Steps,
        parameters: Sampling | Pooling,
    ) -> None:
        self.steps = steps
        self.batch = Batch(
            capacity=vllm_config.scheduler_config.max_num_seqs,
            max_model_len=vllm_config.model_config.max_model_len,
            block_sizes=[group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups],
            parameters=parameters,
            state_slots=steps.state_slots,
            state_group=state_group_of(kv_cache_config.kv_cache_groups),
        )
        steps.inputs.check_filled(self.batch.fills)
        self.requests: dict[str, R] = {}

    @abstractmethod
    def execute(self, output: compat.SchedulerOutput) -> compat.ModelRunnerOutput | None:
        """Updates the batch, and runs the step unless vLLM is to call `sample` for it."""

    @abstractmethod
    def sample(self, grammar: compat.GrammarOutput | None) -> compat.ModelRunnerOutput | compat.AsyncModelRunnerOutput:
        """Runs the step for which `execute` answered None. grammar: the structured outputs' bitmasks."""

    def settle(self) -> None:
        """Waits until the tokens of all started steps are on the host."""

    @abstractmethod
    def _request(self, new: NewRequestData, known: R | None) -> R:
        """A new request. known: the same one before it was preempted, where vLLM's second model runner sends it again."""

    def _update(self, output: compat.SchedulerOutput) -> Scheduled | None:
        """Updates the batch. Returns the step to run; None if there are no tokens to compute."""
        if output.scheduled_spec_decode_tokens or output.kv_cache_block_copies:
            raise UnsupportedError(
                "vLLM scheduled speculative tokens or copies of KV blocks, which fxhlo does not do yet"
            )
        for request_id in output.finished_req_ids:
            self.batch.remove(request_id)
            self.requests.pop(request_id, None)
        for request_id in output.preempted_req_ids or ():
            self.batch.slots.free(request_id)
        for new in output.scheduled_new_reqs:
            request = self.requests[new.req_id] = self._request(new, self.requests.get(new.req_id))
            self.batch.place(request, output.num_scheduled_tokens)
        self._continue(output.scheduled_cached_reqs, output.num_scheduled_tokens)
        if not output.total_num_scheduled_tokens:
            return None
        ids = list(output.num_scheduled_tokens)
        rows = np.array([self.batch.rows[request_id] for request_id in ids])
        counts = np.array(list(output.num_scheduled_tokens.values()), np.int32)
        for source, target in self.batch.state_moves(rows, counts):
            self.steps.copy_row(source, target)
        return Scheduled(ids, rows, counts)

    def _continue(self, cached: CachedRequestData, scheduled: Mapping[str, int]) -> None:
        """Updates requests of earlier steps: their count of cached tokens, and added or, after preemption, replaced blocks."""
        news = zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, cached.num_output_tokens, strict=True
        )
        for request_id, computed, new_blocks, outputs in news:
            request = self.requests[request_id]
            row = self.batch.rows.get(request_id)
            stale = request_id in cached.resumed_req_ids or outputs < len(request.output)
            if row is not None and not stale:
                self.batch.extend(row, computed, new_blocks)
                continue
            if request.unknown:
                self.settle()
            if request_id in cached.resumed_req_ids:
                request.blocks = [[] for _ in request.blocks]
            for blocks, more in zip(request.blocks, new_blocks or (), strict=False):
                blocks.extend(more)
            request.computed = computed
            del request.output[outputs:]
            self.batch.place(request, scheduled)


class Runner(StepRunner[Request]):
    """Samples a token for each request whose tokens are all computed.

    apart: given where vLLM reads outputs in a thread of its own, or on another host and not here; called where reading fails. The
    batch then gets a step's tokens when the next but one is scheduled, so that it does at the same time on all hosts.
    """

    def __init__(
        self,
        vllm_config: compat.VllmConfig,
        kv_cache_config: compat.KVCacheConfig,
        steps: Steps,
        apart: Callable[[Exception], None] | None = None,
    ) -> None:
        model = vllm_config.model_config
        self.sampling = Sampling(vllm_config.scheduler_config.max_num_seqs, model.get_vocab_size())
        super().__init__(vllm_config, kv_cache_config, steps, self.sampling)
        self._seeds = np.random.default_rng(model.seed)
        self._scheduled: Scheduled | None = None
        self._started: deque[SampledStep] = deque()
        """Steps whose tokens may not be on the host yet, in order."""
        self._waits = not steps.feeds and steps.depth == 1
        self._apart = apart if steps.feeds else None

    def execute(self, output: compat.SchedulerOutput) -> compat.ModelRunnerOutput | None:
        """Updates the batch. Returns None if `sample` is to run the step, or an empty output if there are no tokens to compute."""
        while self._apart is not None and len(self._started) > 1:
            self._started.popleft().settle()
        self._scheduled = self._update(output)
        return compat.EMPTY_MODEL_RUNNER_OUTPUT if self._scheduled is None else None

    def sample(self, grammar: compat.GrammarOutput | None) -> compat.ModelRunnerOutput | compat.AsyncModelRunnerOutput:
        """Starts the step of the last `execute`, and waits for it where vLLM does not schedule asynchronously.

        grammar: the structured outputs' bitmasks.
        """
        step, self._scheduled = self._scheduled, None
        if step is None:
            raise FxhloError("sample_tokens was called without a step", next_step="report this as a bug of fxhlo")
        masks: Mapping[str, np.ndarray] = {}
        if grammar is not None:
            masks = dict(zip(grammar.structured_output_request_ids, grammar.grammar_bitmask, strict=True))
        bucket = self.steps.select(int(step.counts.sum()), len(step.ids))
        frame = self.steps.inputs.frame(bucket)
        requests = [self.requests[request_id] for request_id in step.ids]
        if (self.sampling.reads(step.rows) & (self.batch.known[step.rows] < self.batch.lengths[step.rows])).any():
            self.settle()
        inputs = self.batch.inputs(step.rows, step.counts, frame)
        inputs |= self.sampling.inputs(step.rows, requests, frame, masks)
        parts, prompts = self._prompt_parts(step), {}
        before = self.steps.slot_states() if parts else ()
        pending = self.steps.start(bucket, inputs)
        if parts:
            prompts = collect(parts, inputs, frame, lambda changed: self.steps.again(bucket, changed, before))
        columns = int(self.sampling.logprobs[step.rows].max()) + 1  # the front end detokenizes each that it gets
        reserved = self.batch.reserve(step.rows, step.counts)
        sampled = SampledStep(step, pending, self.batch, reserved, columns, prompts, self._apart)
        if self._waits:
            return sampled.get_output()
        while self._started and self._started[0].settled:
            self._started.popleft()
        self._started.append(sampled)
        return sampled

    def settle(self) -> None:
        while self._started:
            self._started.popleft().settle()

    def _prompt_parts(self, step: Scheduled) -> list[Part]:
        """The requests of this step that want log-probabilities of their prompt, with the tokens that the step computes."""
        starts, computed = np.cumsum(step.counts) - step.counts, self.batch.computed[step.rows]
        return [
            Part(request, int(first), int(count), int(row))
            for request, first, count, row in zip(
                map(self.requests.__getitem__, step.ids), computed, step.counts, starts, strict=True
            )
            if request.prompt_logprobs is not None
        ]

    def _request(self, new: NewRequestData, known: Request | None) -> Request:
        assert new.prompt_token_ids is not None, "prompts of embeddings are refused"
        assert new.sampling_params is not None, "the model generates"
        prompt, params = list(new.prompt_token_ids), new.sampling_params
        tokens = prompt if new.prefill_token_ids is None else list(new.prefill_token_ids)
        request = Request(
            id=new.req_id,
            params=params,
            prompt=prompt,
            output=tokens[len(prompt) :],
            blocks=[list(blocks) for blocks in new.block_ids],
            computed=new.num_computed_tokens,
            seed=self._seed(params) if known is None else known.seed,
        )
        if params.prompt_logprobs is not None and known is None:
            request.prompt_logprobs = PromptLogprobs.of(len(prompt), self.sampling.count(params.prompt_logprobs))
        elif known is not None:
            request.prompt_logprobs = known.prompt_logprobs
        return request

    def _seed(self, params: SamplingParams) -> int:
        """A 64-bit seed: the request's own, or one drawn from the engine's generator."""
        if params.seed is not None:
            return params.seed & 0xFFFFFFFFFFFFFFFF
        return int(self._seeds.integers(0, 2**64, dtype=np.uint64))
