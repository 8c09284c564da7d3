"""Rows of the states that one request has at a time, where those of prefixes are cached: how many, and what the batch copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.emit.emit import emit
from fxhlo.runtime.core.errors import FxhloError, UnsupportedError
from fxhlo.runtime.core.signature import Argument
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm import compat, memory
from fxhlo.runtime.vllm.batch.state_rows import StateRows as Tables
from fxhlo.runtime.vllm.caches import Caches
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.states.pool import StateRowsSpec
from fxhlo.runtime.vllm.states.rows import StateRows
from fxhlo.runtime.vllm.steps.row_copy import row_copy

from .test_recurrent_layers import config_of

MIB = 1 << 20


@pytest.mark.parametrize("row", [1, 100, 4096, 70_000])
@pytest.mark.parametrize("block", [64, 4096, 1 << 16])
@pytest.mark.parametrize("requests", [1, 8, 64])
def test_blocks_and_rows_fit_into_the_memory_and_leave_little_of_it(row: int, block: int, requests: int) -> None:
    rows = StateRows(requests, row, block)
    for room in (requests * row + block, 3 * MIB, 64 * MIB + 77):
        blocks = rows.blocks_in(room)
        assert rows.bytes_of(blocks) <= room < rows.bytes_of(blocks + 2) + row
        assert rows.of(blocks) >= 2 * requests + 1


def test_without_attention_the_rows_are_vllms_blocks() -> None:
    rows = StateRows(requests=4, row=100)
    assert (rows.blocks_in(1000), rows.of(15), rows.bytes_of(15), rows.bytes_of(3)) == (15, 15, 1000, 0)


def test_a_request_moves_on_to_the_row_of_its_next_block() -> None:
    tables = Tables(capacity=3, max_model_len=64, block_size=16)
    tables.place(0, [5, 6])
    tables.place(1, [0, 7, 8])
    tables.place(2, [9])
    rows = np.arange(3)
    assert tables.after(rows, np.array([16, 33, 1])).tolist() == [5, 8, 9]
    assert tables.moves(rows, np.array([16, 32, 0]), np.array([1, 5, 3])) == [(5, 6), (7, 8)]
    assert tables.moves(rows[:2], np.array([3, 33]), np.array([13, 15])) == []
    with pytest.raises(FxhloError, match="whose state has no row"):
        tables.moves(np.array([1]), np.array([10]), np.array([10]))


def test_a_row_of_every_state_is_copied_in_place() -> None:
    register_torch_ops()
    generator = np.random.default_rng(0)
    shapes = {"conv_state.0": ((5, 3, 8), "bfloat16"), "recurrent_state.0": ((5, 2, 4, 4), "float32")}
    program = emit(row_copy([Argument(name, "state", *one) for name, one in shapes.items()])).compile()
    assert all(one.alias is not None for one in program.signature.arguments if one.kind == "state")
    states = [
        torch.from_numpy(generator.standard_normal(shape, np.float32)).to(getattr(torch, dtype))
        for shape, dtype in shapes.values()
    ]
    for found, state in zip(program(np.int32(4), np.int32(1), *states), states, strict=True):
        expected = state.clone()
        expected[1] = state[4]
        torch.testing.assert_close(torch.from_numpy(np.array(found, np.float32)), expected.float(), rtol=0, atol=0)


def caches_of(folder: Path, name: str, cached: bool, **more: object) -> tuple[compat.VllmConfig, Caches]:
    config = config_of(folder, name, **more)
    cache = config.cache_config
    if cached:
        cache.enable_prefix_caching, cache.mamba_cache_mode = True, "align"
    build_model(config, weights=False)
    return config, Caches(config, compat.layers_of(config), Target("cpu"))


def test_vllm_is_told_of_attention_and_of_rows_in_one_group_each(tmp_path: Path) -> None:
    config, caches = caches_of(tmp_path, "Lfm2ForCausalLM", cached=True)
    config.cache_config.kv_cache_memory_bytes, config.cache_config.kv_cache_layout = MIB, "LBNHC"
    room = memory.Room(1 << 30, 1 << 30, "here", on_host=True)
    made = compat.kv_cache_config(config, caches.for_vllm(), caches.bytes_for_vllm(0, room))
    attention, states = made.kv_cache_groups
    assert attention.layer_names == ["model.layers.1.self_attn.attn"]
    assert isinstance(states.kv_cache_spec, StateRowsSpec)
    assert [len(group.layers) for group in caches.groups(made)] == [1]
    sizes = caches.sizes(made.num_blocks)
    taken = sum(state.bytes_in(sizes) for state in caches.states())
    assert MIB * 0.95 < taken <= MIB + caches.slot_bytes()
    assert sizes["num_slots"] == states.kv_cache_spec.rows.of(made.num_blocks) >= 9


def test_too_little_memory_for_states_of_prefixes_is_named(tmp_path: Path) -> None:
    config, caches = caches_of(
        tmp_path, "Lfm2ForCausalLM", cached=True, hidden_size=1024, conv_dim=1024, block_dim=1024
    )
    config.cache_config.kv_cache_memory_bytes = 1 << 14
    room = memory.Room(1 << 30, 1 << 30, "here", on_host=True)
    with pytest.raises(memory.CacheSizeError, match=r"the states of prefixes take(.|\n)*--no-enable-prefix-caching"):
        caches.bytes_for_vllm(0, room)


@pytest.mark.parametrize("option", ["mamba_block_size", "prefix_match_unit"])
def test_states_are_kept_at_the_ends_of_blocks_alone(tmp_path: Path, option: str) -> None:
    config_of(tmp_path, "Lfm2ForCausalLM")
    with pytest.raises(
        UnsupportedError, match=r"other places than the ends of KV blocks(.|\n)*leave out --mamba-block-size"
    ):
        compat.engine_config(str(tmp_path), max_model_len=64, max_num_seqs=4, enable_prefix_caching=True, **{option: 8})
