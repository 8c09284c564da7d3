"""Bytes for the KV caches: each way to ask for them, and which of them wins."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from vllm.config import CacheConfig

from fxhlo.runtime.vllm import memory
from fxhlo.runtime.vllm.memory import GIB, CacheSizeError, Room, wanted_bytes


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host of 64 GiB, 40 GiB of them free, in a control group without a limit; gives the group's folder."""
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(total=64 * GIB, available=40 * GIB))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "space", "expected"),
    [
        ({}, 0, 2 * GIB),
        ({}, 5, 5 * GIB),
        ({"gpu_memory_utilization": 0.5}, 0, 32 * GIB - 3 * GIB - memory.RESERVE),
        ({"gpu_memory_utilization": 0.5}, 5, 5 * GIB),
        ({"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 7 * GIB}, 5, 7 * GIB),
        ({"kv_cache_memory_bytes": 7 * GIB}, None, 7 * GIB),
    ],
    ids=str,
)
def test_what_is_asked_for(host: Path, options: dict[str, float], space: int | None, expected: int) -> None:
    assert wanted_bytes(CacheConfig(**options), space, 3 * GIB, GIB, Room.of_host()) == expected


def test_without_a_word_one_longest_request_fits(host: Path) -> None:
    assert wanted_bytes(CacheConfig(), 0, 3 * GIB, 9 * GIB, Room.of_host()) == 9 * GIB


def test_a_control_group_has_less_than_the_host(host: Path) -> None:
    (host / "memory.max").write_text(f"{8 * GIB}\n")
    (host / "memory.current").write_text(f"{5 * GIB}\n")
    (host / "memory.stat").write_text(f"anon {3 * GIB}\ninactive_file {GIB}\nactive_file 0\n")
    assert memory.total_bytes() == 8 * GIB
    assert memory.free_bytes() == 4 * GIB
    assert (
        wanted_bytes(CacheConfig(gpu_memory_utilization=0.75), 0, 2 * GIB, GIB, Room.of_host())
        == 6 * GIB - 2 * GIB - memory.RESERVE
    )
    (host / "memory.max").write_text("max\n")
    assert (memory.total_bytes(), memory.free_bytes()) == (64 * GIB, 40 * GIB)


def test_a_part_that_the_weights_fill(host: Path) -> None:
    with pytest.raises(CacheSizeError, match="nothing is left for the KV cache") as caught:
        wanted_bytes(CacheConfig(gpu_memory_utilization=0.1), 0, 6 * GIB, GIB, Room.of_host())
    assert "--gpu-memory-utilization" in str(caught.value)
    assert "the weights and states take 6.00 GiB" in str(caught.value)


def test_less_than_a_block(host: Path) -> None:
    with pytest.raises(CacheSizeError, match="too little memory for one KV block: it takes") as caught:
        memory.kv_cache_bytes(1000, 2000, 4000, GIB)
    assert "--kv-cache-memory-bytes" in str(caught.value)
