"""vLLM's own engine and scheduler drive our worker and runner; the programs are a fake that checks its inputs.

The fake's "KV cache" holds token ids. Each step it writes its tokens where slot_mapping says, reads every request's
whole context back through its block table, and "samples" a hash of it. So a request's answer is right only if every token
of it went to the right place in the right order, however vLLM cut, delayed, preempted or shared the work. With `state_slots` the
hash is also carried along in a state of one row per request, which must agree with the context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM, SamplingParams

from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm import worker
from fxhlo.runtime.vllm.sampled import SampledStep
from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.kinds import Bucket, select
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.plan import make_plan

VOCABULARY = 100
LENGTHS = (1, 2, 15, 16, 17, 40, 5, 100, 63, 64, 65, 30)
PROMPTS = [[(7 * index + 3 * at) % 90 + 2 for at in range(length)] for index, length in enumerate(LENGTHS)]


def mixed(tokens: np.ndarray, state: int = 1) -> int:
    """The state after these tokens: it depends on every one and its place."""
    for token in tokens.tolist():
        state = (state * 31 + token) % 1_000_003
    return state


def hashed(context: np.ndarray) -> int:
    """A token of 2 to 99 (0 and 1 have a meaning) that depends on every token of the context and its place."""
    return mixed(context) % 98 + 2


def expected(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(hashed(np.array(tokens)))
    return tokens[len(prompt) :]


@dataclass
class Answered:
    """A fake pending.PendingStep whose results are there at once. read: whether somebody waited for them."""

    answer: np.ndarray
    read: bool = False

    def send(self, *, with_logprobs: bool) -> None:
        pass

    def tokens(self) -> np.ndarray:
        self.read = True
        return self.answer

    def logprobs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids = np.repeat(self.answer[:, None], 21, axis=1)
        return ids, np.zeros(ids.shape, np.float32), np.ones(len(ids), np.int32)


class CheckingSteps:
    """A fake steps.Steps."""

    last: CheckingSteps
    state_slots = False
    depth = 1

    def __init__(self, config: Any, sizes: Mapping[str, int]) -> None:
        options = StepOptions.of_engine(config, (), Target.parse("cpu"))
        self.feeds = options.feed
        self.last_tokens = np.full(options.max_requests, -7, np.int32)
        self.fed = 0
        self.ahead = 0
        self.before: Answered | None = None
        self.block_size = options.block_size
        self.buckets = make_plan(options.limits, Costs()).buckets
        self.inputs = StepInputs.of(options, step_passes(options))
        self.cache = np.full(sizes["num_blocks"] * self.block_size, -1, np.int64)
        self.states = np.full(sizes["num_slots"], -1, np.int64)  # what an earlier request left
        self.copied = 0
        self.used: list[Bucket] = []
        self.given: list[dict[str, np.ndarray]] = []
        CheckingSteps.last = self

    @classmethod
    def prepare(
        cls,
        config: Any,
        model: Any,
        build: Any,
        states: Any,
        groups: Any,
        sizes: Any,
        progress: Any,
        places: Any = None,
        bundle: Any = None,
    ) -> CheckingSteps:
        progress("nothing to compile")
        return cls(config, sizes)

    def select(self, tokens: int, requests: int) -> Bucket:
        return select(self.buckets, Bucket.of(tokens=tokens, requests=requests))

    def start(self, bucket: Bucket, inputs: dict[str, np.ndarray]) -> Answered:
        answered = self._run(bucket, inputs)
        self.ahead += self.before is not None and not self.before.read
        self.before = answered
        return answered

    def _run(self, bucket: Bucket, inputs: dict[str, np.ndarray]) -> Answered:
        self.used.append(bucket)
        self.given.append(inputs)
        shapes = self.inputs.frame(bucket).shapes
        assert {name: value.shape for name, value in inputs.items()} == {name: shapes[name] for name in inputs}
        assert all(value.dtype == self.inputs.table[name].dtype for name, value in inputs.items())
        assert set(shapes) - set(inputs) <= {name for name, one in self.inputs.table.items() if one.wide}
        starts, lengths = inputs["query_start_loc"], inputs["seq_lens"]
        total = starts[-1]
        assert (inputs["slot_mapping"][total:] == -1).all()
        assert len(set(inputs["slot_mapping"][:total].tolist())) == total, "two tokens in one slot"
        self.cache[inputs["slot_mapping"][:total]] = self._ids(inputs)[:total]
        tokens = np.zeros(bucket["requests"], np.int32)
        for row in range(bucket["requests"]):
            count = starts[row + 1] - starts[row]
            if not count:
                continue
            positions = inputs["positions"][starts[row] : starts[row + 1]]
            assert positions.tolist() == list(range(lengths[row] - count, lengths[row]))
            assert inputs["logit_rows"][row] == starts[row + 1] - 1
            at = np.arange(lengths[row])
            slots = inputs["block_tables"][row][at // self.block_size] * self.block_size + at % self.block_size
            tokens[row] = hashed(self.cache[slots])
            if "seen_ids" in inputs and inputs["repetition_penalty"][row] != 1:
                assert set(inputs["seen_ids"][row].tolist()) - {-1} == set(self.cache[slots].tolist())
            slot, new = inputs["state_slots"][row], self.cache[slots][-count:]
            assert bool(slot) == self.state_slots
            if slot:
                self.states[slot] = mixed(new) if count == lengths[row] else mixed(new, int(self.states[slot]))
                assert self.states[slot] % 98 + 2 == tokens[row], "another request's state, or none"
        used = inputs["state_slots"][: np.count_nonzero(np.diff(starts))]
        assert not self.state_slots or len(set(used.tolist())) == len(used), "two requests in one slot"
        if "allowed_mask" in inputs:
            tokens = np.array(
                [_first_allowed(mask, token) for mask, token in zip(inputs["allowed_mask"], tokens, strict=True)]
            )
        if self.feeds:
            rows = inputs["last_rows"]
            self.last_tokens[rows[rows >= 0]] = tokens[rows >= 0]
        return Answered(tokens)

    def _ids(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """The step's tokens: those that the host does not have yet are on the device."""
        if not self.feeds:
            return inputs["input_ids"]
        self.fed += np.count_nonzero(inputs["fed"] >= 0)
        return np.where(inputs["fed"] >= 0, self.last_tokens[inputs["fed"]], inputs["input_ids"])

    def copy_row(self, source: int, target: int) -> None:
        self.states[target] = self.states[source]
        self.copied += 1

    def slot_states(self) -> tuple[np.ndarray, ...]:
        return self.states.copy(), self.last_tokens.copy()

    def again(self, bucket: Bucket, inputs: dict[str, np.ndarray], before: tuple[np.ndarray, ...]) -> Answered:
        now = self.states, self.last_tokens
        self.states, self.last_tokens = (one.copy() for one in before)
        given = dict(
            inputs, logit_rows=inputs["query_start_loc"][1:] - 1
        )  # start's own; no token is taken of these rows
        try:
            return self._run(bucket, given)
        finally:
            self.states, self.last_tokens = now


def _first_allowed(mask: np.ndarray, token: int) -> int:
    found = [one for one in [token, *range(VOCABULARY)] if mask[one // 32] >> (one % 32) & 1]
    return found[0]


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """engine(**arguments) -> LLM whose programs are CheckingSteps; in this process, without a tokenizer or weights."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(worker, "prepare", CheckingSteps.prepare)
    started = []

    def start(**arguments: Any) -> LLM:
        defaults = {
            "model": str(folder),
            "max_model_len": 256,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "kv_cache_memory_bytes": 8 << 20,
            "seed": 0,
        }
        llm = LLM(skip_tokenizer_init=True, load_format="dummy", **(defaults | arguments))
        started.append(llm)
        return llm

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


def answers(llm: LLM, prompts: list[list[int]], params: Any = None) -> list[Any]:
    params = params or SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, detokenize=False)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


RIGHT = [expected(prompt, 40) for prompt in PROMPTS]
both = pytest.mark.parametrize("ahead", [True, False], ids=["asynchronous", "one step at a time"])


@both
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"enable_prefix_caching": False, "block_size": 32},
        {"max_num_batched_tokens": 16, "max_num_seqs": 3},
        {"num_gpu_blocks_override": 18, "max_num_seqs": 8, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 18, "max_num_seqs": 8, "max_num_batched_tokens": 24},
        {"max_num_seqs": 1},
    ],
    ids=["default", "no prefix cache", "small chunks", "preemption", "preemption and prefix cache", "one at a time"],
)
def test_every_way_of_scheduling_gives_the_same_tokens(engine, arguments, ahead) -> None:
    llm = engine(disable_log_stats=False, async_scheduling=ahead, **arguments)
    assert tokens(answers(llm, PROMPTS)) == RIGHT
    again = answers(llm, PROMPTS)
    assert tokens(again) == RIGHT
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    if "num_gpu_blocks_override" in arguments:
        assert metrics["vllm:num_preemptions"] > 0
    elif arguments.get("enable_prefix_caching", True):
        assert max(output.num_cached_tokens for output in again) >= 64
    steps = CheckingSteps.last
    assert steps.feeds == ahead
    assert bool(steps.fed) == bool(steps.ahead) == ahead


@both
@pytest.mark.parametrize(
    "arguments",
    [
        {"max_num_batched_tokens": 16, "max_num_seqs": 3},
        {"num_gpu_blocks_override": 18, "max_num_seqs": 8},
        {"num_gpu_blocks_override": 18, "max_num_seqs": 4, "max_num_batched_tokens": 24},
    ],
    ids=["small chunks", "preemption", "preemption and small chunks"],
)
def test_a_request_keeps_its_state_however_it_is_scheduled(
    engine, arguments, ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckingSteps, "state_slots", True)
    llm = engine(disable_log_stats=False, enable_prefix_caching=False, async_scheduling=ahead, **arguments)
    for _ in range(2):
        assert tokens(answers(llm, PROMPTS)) == RIGHT
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    assert bool(metrics["vllm:num_preemptions"]) == ("num_gpu_blocks_override" in arguments)


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """The config of a model with attention and a state per request."""
    path = tmp_path / "hybrid"
    path.mkdir()
    config = {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "vocab_size": VOCABULARY,
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": 256, "conv_L_cache": 3, "conv_dim": 64, "block_dim": 64, "torch_dtype": "float32",
        "block_auto_adjust_ff_dim": False,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("ahead", "arguments"),
    [
        pytest.param(True, {}, id="default"),
        pytest.param(
            False,
            {"max_num_batched_tokens": 24, "max_num_seqs": 3, "prefix_cache_retention_interval": 16},
            id="small chunks, all states kept",
        ),
        pytest.param(
            True, {"num_gpu_blocks_override": 24, "max_num_batched_tokens": 24}, id="preemption and small chunks"
        ),
        pytest.param(False, {"num_gpu_blocks_override": 24}, id="preemption"),
        pytest.param(
            True, {"block_size": 32, "max_num_batched_tokens": 16, "max_num_seqs": 2}, id="chunks smaller than blocks"
        ),
    ],
)
def test_a_request_goes_on_from_the_state_of_a_prefix(
    engine, hybrid, ahead, arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckingSteps, "state_slots", True)
    llm = engine(model=str(hybrid), disable_log_stats=False, async_scheduling=ahead, **arguments)
    for _ in range(2):
        assert tokens(answers(llm, PROMPTS)) == RIGHT
    (long,) = answers(llm, [PROMPTS[7]])
    (longer,) = answers(llm, [PROMPTS[7] + RIGHT[7]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert (long.num_cached_tokens > 0) == ("num_gpu_blocks_override" not in arguments)
    assert longer.num_cached_tokens == (128 if "prefix_cache_retention_interval" in arguments else 96)
    assert tokens([longer]) == [expected(PROMPTS[7] + RIGHT[7], 4)]
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    assert bool(metrics["vllm:num_preemptions"]) == ("num_gpu_blocks_override" in arguments)
    assert metrics["vllm:prefix_cache_hits"] > 0
    assert CheckingSteps.last.copied
    assert llm.reset_prefix_cache()
    assert not any(output.num_cached_tokens for output in answers(llm, PROMPTS[:2]))


@both
def test_log_probabilities_of_prompts_leave_the_states_as_they_are(
    engine, ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckingSteps, "state_slots", True)
    llm = engine(enable_prefix_caching=False, max_num_batched_tokens=16, max_num_seqs=3, async_scheduling=ahead)
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, detokenize=False, prompt_logprobs=1)
    assert tokens(answers(llm, PROMPTS, params)) == RIGHT


@pytest.mark.parametrize("arguments", [{}, {"num_gpu_blocks_override": 18}], ids=["default", "preemption"])
def test_penalties_see_every_token(engine, arguments) -> None:
    """The step before is waited for, in a batch with requests that need nothing of it."""
    llm = engine(**arguments)
    plain, penalized = (
        SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, detokenize=False, repetition_penalty=penalty)
        for penalty in (1.0, 1.5)
    )
    params = [penalized if index % 3 == 0 else plain for index in range(len(PROMPTS))]
    assert tokens(answers(llm, PROMPTS, params)) == RIGHT
    assert CheckingSteps.last.fed


@pytest.mark.parametrize("ending", ["stop", "length"])
def test_a_request_that_ended_while_its_next_step_ran_leaves_its_row_to_another(engine, ending) -> None:
    llm = engine(max_num_seqs=2)
    params = [
        SamplingParams(max_tokens=5 + index, temperature=0, ignore_eos=True, detokenize=False)
        if ending == "length"
        else SamplingParams(max_tokens=40, temperature=0, stop_token_ids=[right[5 + index]], detokenize=False)
        for index, right in enumerate(RIGHT)
    ]
    found = tokens(answers(llm, PROMPTS, params))
    for index, (answer, right) in enumerate(zip(found, RIGHT, strict=True)):
        count = 5 + index if ending == "length" else right.index(right[5 + index]) + 1
        assert answer == right[:count]


@both
def test_an_aborted_request_leaves_the_others_alone(engine, ahead) -> None:
    llm = engine(async_scheduling=ahead)
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, detokenize=False)
    core = llm.llm_engine
    for index, prompt in enumerate(PROMPTS[:6]):
        core.add_request(str(index), {"prompt_token_ids": prompt}, params)
    for _ in range(5):
        core.step()
    core.abort_request(["1", "4"])
    finished: dict[str, list[int]] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
    assert {name: finished[name] for name in "0235"} == {name: RIGHT[int(name)] for name in "0235"}
    assert tokens(answers(llm, PROMPTS)) == RIGHT


def test_decode_steps_take_the_smallest_program(engine) -> None:
    llm = engine(max_num_seqs=32)
    answers(llm, [[5, 6, 7]])
    used = CheckingSteps.last.used
    assert used[0] == Bucket.of(tokens=4, requests=4)
    assert set(used) == {Bucket.of(tokens=4, requests=4)}
    assert len(used) == 40


def test_seeds_steps_and_logprobs_reach_the_step(engine) -> None:
    llm = engine()
    seeded = SamplingParams(max_tokens=3, temperature=1.0, seed=-2, ignore_eos=True, detokenize=False)
    drawn = SamplingParams(max_tokens=3, temperature=1.0, logprobs=2, ignore_eos=True, detokenize=False)
    first, second = answers(llm, [[5, 6], [7, 8]], [seeded, drawn])
    inputs = CheckingSteps.last.given
    seeds = np.stack([one["seeds"][:2].view(np.uint32) for one in inputs])
    assert (seeds == seeds[0]).all(), "a request keeps its seed"
    assert seeds[0, 0].tolist() == [0xFFFFFFFE, 0xFFFFFFFF]
    assert seeds[0, 1].any()
    assert [one["steps"][:2].tolist() for one in inputs] == [[0, 0], [1, 1], [2, 2]]
    assert all(one["logprobs_enabled"] == 1 for one in inputs)
    assert first.outputs[0].logprobs is None
    assert len(second.outputs[0].logprobs) == 3


def test_no_more_logprobs_leave_the_step_than_somebody_asked_for(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gives max_logprobs; the front would make text of each."""
    results: list[Any] = []
    finish = SampledStep.get_output

    def noted(step: SampledStep) -> Any:
        results.append(finish(step))
        return results[-1]

    monkeypatch.setattr(SampledStep, "get_output", noted)
    llm = engine()
    params = [
        SamplingParams(max_tokens=count, logprobs=asked, detokenize=False)
        for count, asked in ((1, 3), (2, 0), (3, None))
    ]
    answers(llm, [[5, 6], [7, 8], [9, 10]], params)
    widths = [None if result.logprobs is None else result.logprobs.logprobs.shape[1] for result in results]
    assert widths == [4, 1, None]


def test_the_engines_seed_decides_the_seeds_that_are_drawn(engine) -> None:
    def draw(seed: int) -> list:
        answers(engine(seed=seed), [[5, 6]], SamplingParams(max_tokens=1, detokenize=False))
        return CheckingSteps.last.given[0]["seeds"][0].tolist()

    assert draw(1) == draw(1) != draw(2)


def test_min_tokens_and_allowed_tokens_are_masks(engine) -> None:
    llm = engine()
    params = SamplingParams(
        max_tokens=6, temperature=0, allowed_token_ids=[50, 60], stop_token_ids=[50], min_tokens=4, detokenize=False
    )
    (output,) = answers(llm, [[5, 6]], params)
    assert list(output.outputs[0].token_ids[:3]) == [60, 60, 60]


def test_a_prompt_that_is_too_long_is_refused_and_others_go_on(engine) -> None:
    llm = engine()
    with pytest.raises(Exception, match="256"):
        answers(llm, [list(range(2, 90)) * 4])
    assert tokens(answers(llm, PROMPTS[:3])) == RIGHT[:3]


def test_weights_are_real_and_on_the_host(engine) -> None:
    llm = engine()
    model = llm.llm_engine.model_executor.driver_worker.get_model()
    assert all(parameter.device == torch.device("cpu") for parameter in model.parameters())
