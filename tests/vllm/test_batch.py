"""The persistent batch: where each token is and goes, and what happens when rows run out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from vllm import SamplingParams

from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.vllm.batch.request import Request
from fxhlo.runtime.vllm.batch.rows import Batch
from fxhlo.runtime.vllm.batch.sampling import Sampling
from fxhlo.runtime.vllm.steps.kinds import Bucket

sys.path.insert(0, str(Path(__file__).parent))
from step_table import table


def request(name: str, prompt: list[int], blocks: list[int], **others) -> Request:
    return Request(
        name, SamplingParams(), prompt, others.get("output", []), [blocks], others.get("computed", 0), seed=0
    )


def batch(capacity: int = 2) -> Batch:
    return Batch(capacity=capacity, max_model_len=16, block_sizes=[4], parameters=Sampling(capacity, 50))


def inputs(of: Batch, counts: dict[str, int], tokens: int, requests: int) -> dict[str, list]:
    rows = np.array([of.rows[name] for name in counts])
    frame = table(max_model_len=16, block_size=4).frame(Bucket.of(tokens=tokens, requests=requests))
    found = of.inputs(rows, np.array(list(counts.values()), np.int32), frame)
    assert all(value.dtype == np.int32 for value in found.values())
    return {name: value.tolist() for name, value in found.items()}


def sampled(of: Batch, row: int, token: int, counts: int = 0) -> None:
    """A step of the request in this row, whose token is read at once."""
    of.computed[row] = of.lengths[row] - counts
    reserved = of.reserve(np.array([row]), np.array([counts], np.int32))
    of.settle(reserved, np.array([token], np.int32))


def test_prefill_of_two_requests_is_padded() -> None:
    of = batch()
    of.place(request("a", [10, 11, 12, 13, 14], [7, 2]), {})
    of.place(request("b", [20, 21], [5]), {})
    assert inputs(of, {"a": 5, "b": 2}, tokens=10, requests=4) == {
        "input_ids": [10, 11, 12, 13, 14, 20, 21, 0, 0, 0],
        "positions": [0, 1, 2, 3, 4, 0, 1, 0, 0, 0],
        "slot_mapping": [28, 29, 30, 31, 8, 20, 21, -1, -1, -1],
        "block_tables": [[7, 2, 0, 0], [5, 0, 0, 0], [0] * 4, [0] * 4],
        "seq_lens": [5, 2, 0, 0],
        "query_start_loc": [0, 5, 7, 7, 7],
        "logit_rows": [4, 6, 0, 0],
        "state_slots": [0, 0, 0, 0],
    }


def test_a_chunk_starts_where_the_cache_ends_and_decode_takes_the_sampled_token() -> None:
    of = batch()
    row = of.place(request("a", [10, 11, 12, 13, 14], [7], computed=3), {})
    of.extend(row, 3, [[2]])
    chunk = inputs(of, {"a": 2}, tokens=2, requests=1)
    assert (chunk["input_ids"], chunk["positions"], chunk["slot_mapping"]) == ([13, 14], [3, 4], [31, 8])
    sampled(of, row, 99)
    of.extend(row, 5, None)
    step = inputs(of, {"a": 1}, tokens=1, requests=1)
    assert (step["input_ids"], step["positions"], step["slot_mapping"]) == ([99], [5], [9])
    assert step["seq_lens"] == [6]


def test_a_request_that_waits_gives_up_its_row_and_gets_one_again() -> None:
    of = batch(capacity=1)
    first, second = request("a", [1, 2], [3]), request("b", [4], [5])
    of.place(first, {"a": 2})
    sampled(of, of.rows["a"], 9)
    of.place(second, {"b": 1})
    assert list(of.rows) == ["b"]
    of.remove("b")
    first.blocks, first.computed = [[8]], 0  # as after a preemption
    of.place(first, {"a": 3})
    assert inputs(of, {"a": 3}, tokens=3, requests=1)["input_ids"] == [1, 2, 9]
    assert inputs(of, {"a": 3}, tokens=3, requests=1)["slot_mapping"] == [32, 33, 34]


def test_more_requests_in_a_step_than_rows_is_an_error() -> None:
    of = batch(capacity=1)
    of.place(request("a", [1], [1]), {"a": 1, "b": 1})
    with pytest.raises(FxhloError, match="max_num_seqs=1"):
        of.place(request("b", [1], [2]), {"a": 1, "b": 1})


def test_a_request_may_fill_the_model_to_its_last_token() -> None:
    of = batch(capacity=1)
    row = of.place(request("a", list(range(15)), [0, 1, 2, 3]), {})
    of.extend(row, 15, [[]])
    sampled(of, row, 7)
    sampled(of, row, 8)  # the token after the last position is stored, and never computed
    assert of.lengths[row] == 17


def slots(of: Batch, *names: str) -> list[int]:
    return inputs(of, dict.fromkeys(names, 1), tokens=4, requests=4)["state_slots"]


def test_a_state_stays_in_its_slot_when_another_request_takes_the_row() -> None:
    of = Batch(capacity=2, max_model_len=16, block_sizes=[4], parameters=Sampling(2, 50), state_slots=True)
    first = request("a", [1, 2], [1])
    of.place(first, {})
    of.place(request("b", [3], [2]), {})
    of.slots.free("b")  # preempted: its row is kept
    assert slots(of, "a") == [1, 0, 0, 0]
    of.place(request("c", [4], [3]), {"b": 1, "c": 1})  # "a" runs, and has no token in this step
    assert slots(of, "c") == [2, 0, 0, 0]
    first.computed = 2
    of.place(first, {"a": 1, "c": 1})
    assert slots(of, "c", "a") == [2, 1, 0, 0]
    of.remove("a")
    of.place(request("d", [5], [4]), {})
    assert slots(of, "d") == [1, 0, 0, 0]


def test_a_request_whose_state_is_lost_and_one_too_many_are_errors() -> None:
    of = Batch(capacity=1, max_model_len=16, block_sizes=[4], parameters=Sampling(1, 50), state_slots=True)
    with pytest.raises(FxhloError, match="a has 3 computed tokens and no state"):
        of.place(request("a", [1, 2, 3, 4], [1], computed=3), {})
    of.place(request("a", [1], [1]), {"a": 1})
    with pytest.raises(FxhloError, match="max_num_seqs"):
        of.place(request("b", [1], [1]), {})


def fed(of: Batch, counts: dict[str, int], tokens: int = 4, requests: int = 4) -> tuple[list, list]:
    rows = np.array([of.rows[name] for name in counts])
    frame = table(max_model_len=16, block_size=4, feed=True).frame(Bucket.of(tokens=tokens, requests=requests))
    found = of.inputs(rows, np.array(list(counts.values()), np.int32), frame)
    return found["fed"].tolist(), found["last_rows"].tolist()


def test_a_token_that_is_not_read_yet_comes_from_the_step_that_samples_it() -> None:
    of = batch()
    first = of.place(request("a", [10, 11], [7]), {})
    second = of.place(request("b", [20, 21, 22], [5]), {})
    rows = np.array([first, second])
    assert fed(of, {"a": 2, "b": 2}) == ([-1] * 4, [first, -1, -1, -1])  # b's prompt is computed in part
    one = of.reserve(rows, np.array([2, 2], np.int32))
    assert one.index.tolist() == [0]
    assert fed(of, {"a": 1, "b": 1}) == ([first, -1, -1, -1], [first, second, -1, -1])
    two = of.reserve(rows, np.array([1, 1], np.int32))
    assert of.parameters.steps[rows].tolist() == [2, 1]
    of.settle(one, np.array([30]))
    assert (of.requests[first].output, of.requests[second].output) == ([30, -1], [-1])
    of.settle(two, np.array([31, 40]))
    assert fed(of, {"a": 1, "b": 1})[0] == [-1] * 4
    assert inputs(of, {"a": 1, "b": 1}, tokens=2, requests=2)["input_ids"] == [31, 40]


def test_a_token_of_a_request_that_lost_its_row_is_kept() -> None:
    of = batch(capacity=1)
    first = request("a", [1, 2], [3])
    row = of.place(first, {})
    started = of.reserve(np.array([row]), np.array([2], np.int32))
    of.place(request("b", [4, 5, 6], [5]), {"b": 1})
    of.settle(started, np.array([9]))
    assert (first.output, first.unknown) == ([9], 0)
    assert inputs(of, {"b": 3}, tokens=4, requests=1)["input_ids"] == [4, 5, 6, 0]
    assert of.known[row] == of.lengths[row] == 3
    of.remove("b")
    first.computed = 2
    of.place(first, {})
    assert inputs(of, {"a": 1}, tokens=1, requests=1)["input_ids"] == [9]
