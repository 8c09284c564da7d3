"""vLLM's own scheduler, with random requests and no model, asks for no step that the proof does not list."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import PoolingParams, SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.steps.options import limits_of
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.plan import make_plan
from fxhlo.runtime.vllm.steps.planning.proof import prove

BLOCK = 16
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "one request": {"max_num_seqs": 1},
    "small steps": {"max_num_batched_tokens": 16, "max_num_seqs": 5},
    "odd limits": {"max_num_batched_tokens": 61, "max_num_seqs": 7},
    "preemption": {"blocks": 20},
    "priorities and preemption": {"scheduling_policy": "priority", "blocks": 20},
    "no prefix cache": {"enable_prefix_caching": False, "blocks": 24},
    "fewer scheduled than batched tokens": {"max_num_scheduled_tokens": 24},
    "fewer active requests": {"max_num_active_seqs": 3},
    "long prompts are held back": {"long_prefill_token_threshold": 5},
    "long prompts are held back by how many there are": {
        "long_prefill_token_threshold": 2, "long_prefill_token_threshold_adaptive": True,
    },
    "prompts whole": {"enable_chunked_prefill": False, "max_num_batched_tokens": 200},
    "requests that fill no step": {"max_model_len": 16, "max_num_batched_tokens": 256, "max_num_seqs": 4},
    "asynchronous": {"async_scheduling": True, "blocks": 24},
    "pooling": {"runner": "pooling", "convert": "embed"},
    "pooling, prompts whole": {"runner": "pooling", "convert": "embed", "enable_chunked_prefill": False, "max_num_batched_tokens": 200},
}  # fmt: skip


class Played:
    """vLLM's scheduler, and a model that answers at random. steps: each that it asked for, (tokens, requests)."""

    def __init__(self, folder: Path, arguments: dict[str, Any], seed: int) -> None:
        given = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 200, **arguments}
        blocks, later = given.pop("blocks", 500), {name: given.pop(name) for name in LATER if name in given}
        self.config = engine_config(str(folder), block_size=BLOCK, **given)
        for name, value in later.items():
            setattr(self.config.scheduler_config, name, value)
        self.config.cache_config.num_gpu_blocks = blocks
        self.pooling = self.config.model_config.runner_type == "pooling"
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        caches = KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        )
        made = self.config.scheduler_config.get_scheduler_cls()
        self.scheduler: Any = made(
            vllm_config=self.config, kv_cache_config=caches, structured_output_manager=StructuredOutputManager(self.config),
            block_size=BLOCK, log_stats=False,
        )  # fmt: skip
        self.random = random.Random(seed)
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.shared = [self.random.randrange(90) for _ in range(200)]
        self.steps: list[tuple[int, int]] = []
        self.preempted = self.hits = self.added = 0
        self.pending: deque[tuple[Any, ModelRunnerOutput]] = deque()

    def add(self, shape: float, *, apart: bool = False) -> None:
        """Adds a request. shape: of its prompt, below 0.1 for one token, below 0.2 for the longest, else any. apart: it shares nothing."""
        longest = self.config.model_config.max_model_len - (not self.pooling)
        length = 1 if shape < 0.1 else longest if shape < 0.2 else self.random.randint(1, longest)
        common = 0 if apart else self.random.choice([0, 0, length // 2, length - 1])
        prompt = self.shared[:common] + [self.random.randrange(90) for _ in range(length - common)]
        answer = min(self.random.choice([1, 2, 9, 60]), self.config.model_config.max_model_len - length)
        self.added += 1
        self.scheduler.add_request(
            Request(
                request_id=str(self.added), prompt_token_ids=prompt, priority=self.random.randrange(3),
                sampling_params=None if self.pooling else SamplingParams(max_tokens=answer, ignore_eos=True),
                pooling_params=PoolingParams(task="embed") if self.pooling else None, block_hasher=self.hasher,
            )
        )  # fmt: skip

    def step(self) -> None:
        output = self.scheduler.schedule()
        self.preempted += len(output.preempted_req_ids or ())
        self.hits += sum(new.num_computed_tokens > 0 for new in output.scheduled_new_reqs)
        if output.total_num_scheduled_tokens:
            assert output.total_num_scheduled_tokens == sum(output.num_scheduled_tokens.values())
            self.steps.append((output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)))
        self.pending.append((output, self._answer(output)))
        if len(self.pending) > int(bool(self.config.scheduler_config.async_scheduling)):
            self.scheduler.update_from_output(*self.pending.popleft())

    def _answer(self, output: Any) -> ModelRunnerOutput:
        ids = list(output.num_scheduled_tokens)
        done = [not self.scheduler.requests[one].is_prefill_chunk for one in ids]
        vectors = [torch.zeros(1) if ended else None for ended in done] if self.pooling else None
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={one: index for index, one in enumerate(ids)},
            sampled_token_ids=[[self.random.randrange(90)] if ended and not self.pooling else [] for ended in done],
            pooler_output=vectors,
        )

    def play(self, steps: int) -> None:
        self.add(0.15)  # one that is alone, then the largest step of all
        self.step()
        for _ in range(20 * self.config.scheduler_config.max_num_seqs):
            self.step()
        for _ in range(self.config.scheduler_config.max_num_seqs):
            self.add(0.15, apart=True)
        self.step()
        for _ in range(steps):
            wanted, alike = self.random.choice([0, 0, 0, 1, 2, 12]), self.random.random()
            for _ in range(min(wanted, 40 - len(self.scheduler.requests))):
                self.add(alike if alike < 0.2 else self.random.random())
            if self.scheduler.requests and self.random.random() < 0.02:
                from vllm.v1.request import RequestStatus

                self.scheduler.finish_requests(
                    self.random.choice(list(self.scheduler.requests)), RequestStatus.FINISHED_ABORTED
                )
            if self.random.random() < 0.01:
                self.scheduler.reset_prefix_cache(reset_running_requests=not self.pending)
            self.step()


LATER = ("max_num_scheduled_tokens", "async_scheduling")
"""Options that the platform sets, or that have no argument: what the scheduler would make of them."""


@pytest.mark.parametrize("way", WAYS)
def test_the_scheduler_asks_for_no_step_outside_of_the_proof(way: str, folder: Path) -> None:
    played = Played(folder, dict(WAYS[way]), seed=len(way))
    limits = limits_of(played.config)
    proof = prove(make_plan(limits, Costs()).buckets, limits)
    played.play(1200)
    assert len(played.steps) > 400
    for step in set(played.steps):
        assert any(step in one for one in proof.ranges), step
    if "blocks" not in WAYS[way]:  # else the limits are those of a moment with more of them
        assert max(tokens for tokens, _ in played.steps) == limits.largest(), "the limits are the scheduler's own"
        assert max(requests for _, requests in played.steps) == limits.requests
    assert bool(played.preempted) or WAYS[way].get("blocks", 500) > 20
    caches = WAYS[way].get("enable_prefix_caching", True) and not played.pooling and limits.longest > BLOCK
    assert bool(played.hits) or not caches


def test_limits_that_are_too_narrow_are_found_out(folder: Path) -> None:
    """So that the test above can fail."""
    played = Played(folder, {}, seed=0)
    limits = limits_of(played.config)
    narrow = prove(make_plan(limits, Costs()).buckets, type(limits)(limits.tokens - 1, limits.requests, limits.longest))
    played.play(200)
    assert any(not any(step in one for one in narrow.ranges) for step in played.steps)
