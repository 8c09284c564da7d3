"""vLLM's block pool in parts: a request's blocks and those of its prefix are of one, whatever comes and goes."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.memory import CacheSizeError, check_blocks
from fxhlo.runtime.vllm.platform import _part_requests
from fxhlo.runtime.vllm.states.parts import PartedCaches

SIZE = 4


def caches(parts: int, blocks: int, window: int = 0) -> PartedCaches:
    sizes: dict[str, Any] = {"block_size": SIZE, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    specs: list[Any] = [FullAttentionSpec(**sizes)]
    if window:
        specs.append(SlidingWindowSpec(**sizes, sliding_window=window))
    groups = [KVCacheGroupSpec([f"layer.{index}"], spec) for index, spec in enumerate(specs)]
    config = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    return PartedCaches(
        parts, kv_cache_config=config, max_model_len=64, scheduler_block_size=SIZE, hash_block_size=SIZE
    )


def request(name: str, tokens: list[int]) -> Request:
    init_none_hash(sha256)
    params = SamplingParams(max_tokens=50)
    params.update_from_generation_config({}, eos_token_id=0)
    return Request(name, tokens, params, None, block_hasher=get_request_block_hasher(SIZE, sha256))


def start(made: PartedCaches, one: Request) -> tuple[int, Any]:
    """Its blocks for all of its prompt, as the scheduler asks for them: (cached tokens, new blocks; None without room)."""
    cached, count, _ = made.get_computed_blocks(one)
    new = made.allocate_slots(one, one.num_tokens - count, count, cached)
    if new is not None:
        one.num_computed_tokens = one.num_tokens
    return count, new


def parts_of(made: PartedCaches, one: Request) -> set[int]:
    return {block // made.block_pool.size for ids in made.get_block_ids(one.request_id) for block in ids if block}


def test_requests_go_where_most_blocks_are_free_and_a_prefix_where_it_is() -> None:
    made = caches(2, 32)
    first, second = request("a", list(range(1, 14))), request("b", list(range(100, 109)))
    assert start(made, first)[0] == start(made, second)[0] == 0
    assert (parts_of(made, first), parts_of(made, second)) == ({1}, {0})  # block 0 is for none, so part 1 has one more
    again = request("c", [*range(100, 108), 7, 8, 9])
    assert start(made, again)[0] == 8
    assert parts_of(made, again) == {0}
    assert made.get_block_ids("c")[0][:2] == made.get_block_ids("b")[0][:2]
    for one in (first, second, again):
        made.free(one)
    assert made.usage == 0
    assert start(made, request("d", list(range(1, 14))))[0] == 12


def test_a_prefix_whose_part_is_full_is_computed_again_elsewhere() -> None:
    made = caches(2, 12)
    first = request("a", list(range(1, 21)))
    assert start(made, first)[1] is not None and parts_of(made, first) == {1}
    same = request("b", [*range(1, 17), 50, 51, 52, 53])
    count, new = start(made, same)
    assert (count, parts_of(made, same)) == (16, {1}) and new is not None
    third = request("c", [*range(1, 17), 60, 61])
    count, new = start(made, third)
    assert (count, parts_of(made, third)) == (0, {0}) and new is not None
    fourth = request("d", list(range(200, 208)))
    assert start(made, fourth)[1] is None
    assert made.usage == pytest.approx(1.0)
    made.free(first)
    assert start(made, fourth)[1] is None  # its other blocks are of the second request, too
    made.free(same)
    assert start(made, fourth)[1] is not None and parts_of(made, fourth) == {1}


def test_the_cache_of_prefixes_can_be_emptied() -> None:
    made = caches(2, 16)
    one = request("a", list(range(1, 14)))
    start(made, one)
    assert not made.reset_prefix_cache()
    made.free(one)
    assert made.reset_prefix_cache()
    assert start(made, request("b", list(range(1, 14))))[0] == 0


@pytest.mark.parametrize(("parts", "window"), [(2, 0), (3, 0), (2, 6)])
def test_whatever_comes_and_goes_a_request_is_in_one_part(parts: int, window: int) -> None:
    """Requests of a few prefixes start, grow, end and are preempted; at the end all blocks are free again."""
    made, choose = caches(parts, 40, window), random.Random(3)
    running: dict[str, Request] = {}
    for step in range(400):
        made.new_step_starts()
        if choose.random() < 0.4:
            base = choose.choice((1, 300)) + choose.choice((0, 1)) * 50
            one = request(str(step), [base + at for at in range(choose.randint(1, 20))] + [step])
            if start(made, one)[1] is not None:
                running[one.request_id] = one
        for name, one in list(running.items()):
            if choose.random() < 0.1:
                made.free(running.pop(name))
                continue
            one.append_output_token_ids(choose.randint(1, 9))
            if one.num_tokens > 60 or made.allocate_slots(one, 1) is None:
                made.free(running.pop(name))
                continue
            one.num_computed_tokens += 1
        owners: dict[int, set[int]] = {}
        for one in running.values():
            assert len(parts_of(made, one)) == 1
            owners.setdefault(parts_of(made, one).pop(), set()).update(*made.get_block_ids(one.request_id))
        for number in made.block_pool.parts:
            taken = len(owners.get(number, set()) - {0}) + (number == 0)
            size = min(40, (number + 1) * made.block_pool.size) - number * made.block_pool.size
            assert made.block_pool.free_in(number) == size - taken
    for one in running.values():
        made.free(one)
    assert made.block_pool.get_num_free_blocks() == 39


def test_each_part_holds_a_request_of_the_greatest_length() -> None:
    check_blocks(10, 4, 64, 2)
    for blocks in (8, 9):
        with pytest.raises(CacheSizeError, match=f"{blocks} KV blocks in 2 parts do not hold one request") as caught:
            check_blocks(blocks, 4, 64, 2)
        assert "to 10 at least" in str(caught.value.next_step)


def test_the_scheduler_is_ours_where_requests_are_parted() -> None:
    def config(number: int, scheduler: str | None, ahead: bool) -> Any:
        return SimpleNamespace(
            additional_config={"fxhlo": {"attention_data_parallel": number}},
            scheduler_config=SimpleNamespace(scheduler_cls=scheduler, async_scheduling=ahead),
        )

    for ahead, name in ((True, "PartedAsyncScheduler"), (False, "PartedScheduler")):
        made = config(2, None, ahead)
        for _ in range(2):
            _part_requests(made)
            assert made.scheduler_config.scheduler_cls == f"fxhlo.runtime.vllm.scheduler.{name}"
    plain = config(1, "other", True)
    _part_requests(plain)
    assert plain.scheduler_config.scheduler_cls == "other"
    with pytest.raises(UnsupportedError, match="has a scheduler of its own"):
        _part_requests(config(2, "other", True))
