"""Engines on other devices than the host: how they are asked for, and that nothing takes the device for the host."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from other_device import NAME, add_device
from vllm import LLM, SamplingParams
from vllm.config import CacheConfig

from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.pjrt import Memory
from fxhlo.runtime.core.selection import Selection
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm import memory, worker
from fxhlo.runtime.vllm.memory import GIB, CacheSizeError, Room
from fxhlo.runtime.vllm.settings import Note, Settings
from fxhlo.runtime.vllm.steps import programs

SIZES = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 4, "kv_cache_memory_bytes": 1 << 20}
PROMPTS = [[5, 6, 7], [11], [9, 8, 7, 6, 5, 4, 3]]
Engine = Callable[..., LLM]


def settings(additional: Any) -> Settings:
    return Settings.of(SimpleNamespace(additional_config=additional))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("additional", "what"),
    [
        ({"fxhlo": {"targt": "cpu"}}, r"no option 'targt'\n.*did you mean target"),
        ({"fxhlo": {"target": "tpu-v6"}}, r"no target 'tpu-v6'\n.*did you mean tpu-v6e"),
        ({"fxhlo": {"target": "cpu:2x2"}}, "the target cpu has no topology"),
        ({"fxhlo": {"target": 6}}, "option 'target' is a text, not 6"),
        ({"fxhlo": {"target": ""}}, "option 'target' is a text"),
        ({"fxhlo": "cpu"}, "'fxhlo' holds \"cpu\""),
        ({"FXHLO": {"target": "cpu"}}, r"no key 'FXHLO'\n.*did you mean fxhlo"),
        ({"fxlho": {"target": "cpu"}}, r"no key 'fxlho'"),
        ({"fxhlo": {}, "fx-hlo": {}}, r"no key 'fx-hlo'"),
        ({"fxhlo_mesh": {"model": 4}}, r"no key 'fxhlo_mesh'"),
        ({"fxhlo_engines": {"count": 2}}, r"no key 'fxhlo_engines'"),
    ],
    ids=str,
)
def test_options_that_are_refused(additional: Any, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"--additional-config: .*{what}"):
        settings(additional)


def test_options_of_others_are_left_alone() -> None:
    assert settings({"ascend": {"x": 1}}) == settings({}) == settings(object()) == Settings()
    assert settings({"fxhlo": {"target": "tpu-v6e:2x4"}, "other": 1}).target == "tpu-v6e:2x4"


def test_what_fxhlo_keeps_there_itself_is_taken_in_another_process() -> None:
    noted = {"fxhlo_mesh": Note(model=4), "fxhlo_engines": Note(count=2)}
    assert settings(pickle.loads(pickle.dumps(noted))) == Settings()


@pytest.mark.parametrize("target", ["cuda", "tpu-v6e"])
def test_a_device_that_is_not_here(target: str) -> None:
    what = rf"the engine cannot run on {target} \(because\): .*\n  next: "
    with pytest.raises(UnsupportedError, match=what):
        worker.started(Selection(Target.parse(target), "because"))


# -- memory ------------------------------------------------------------------------------------------------------------

DEVICE = Room(32 * GIB, 31 * GIB, "the device (far)")


@pytest.mark.parametrize(
    ("options", "space", "expected"),
    [
        ({}, 0, int(32 * GIB * CacheConfig.gpu_memory_utilization) - 3 * GIB - memory.RESERVE),
        ({"gpu_memory_utilization": 0.5}, 5, 16 * GIB - 3 * GIB - memory.RESERVE),
        ({"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 7 * GIB}, 5, 7 * GIB),
    ],
    ids=str,
)
def test_a_devices_memory_is_its_own(options: dict[str, Any], space: int, expected: int) -> None:
    assert memory.wanted_bytes(CacheConfig(**options), space, 3 * GIB, GIB, DEVICE) == expected


def test_what_a_device_cannot_hold() -> None:
    with pytest.raises(
        CacheSizeError, match=r"the weights do not fit: they take 40.00 GiB, and 31.00 GiB of the device"
    ):
        memory.check_weights(40 * GIB, DEVICE)
    memory.check_weights(40 * GIB, Room.of_host())  # mapped files may be larger than the host's memory
    with pytest.raises(CacheSizeError, match=r"free memory on the device \(far\)"):
        memory.kv_cache_bytes(40 * GIB, GIB, GIB, DEVICE.free, DEVICE.place)
    fits = Memory(arguments=30 * GIB, outputs=9 * GIB, aliased=9 * GIB, temporaries=GIB // 2, code=GIB // 4)
    memory.check_programs([fits, fits], DEVICE)
    with pytest.raises(
        CacheSizeError,
        match=r"temporaries 1.50 GiB, and code 0.75 GiB of the 32.00 GiB .*\n  next: lower --gpu-memory-utilization",
    ):
        memory.check_programs([fits, Memory(30 * GIB, 0, 0, GIB + GIB // 2, GIB // 2)], DEVICE)


def test_the_memory_of_a_registered_target(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pjrt.device(add_device(monkeypatch))
    assert Room.of(device) == Room(4 * GIB, 4 * GIB, "the device (cpu)")
    pjrt.found._device.cache_clear()
    unknown = pjrt.device(add_device(monkeypatch, memory=None))
    with pytest.raises(CacheSizeError, match="does not say how much memory it has"):
        Room.of(unknown)
    assert Room.of(pjrt.device("cpu")).on_host


# -- a whole engine on one ---------------------------------------------------------------------------------------------


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    """engine(**arguments) -> LLM of the tiny model with real programs; in this process, on a cache of its own."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("FXHLO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FXHLO_NATIVE", "0")
    started: list[LLM] = []

    def start(**arguments: Any) -> LLM:
        llm = LLM(str(folder), skip_tokenizer_init=True, load_format="dummy", seed=0, **{**SIZES, **arguments})
        started.append(llm)
        return llm

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


def answers(llm: LLM, **params: Any) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, **params)
    given = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return [list(one.outputs[0].token_ids) for one in llm.generate(given, sampling, use_tqdm=False)]


def test_an_engine_on_another_device(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens as on the host, greedy and seeded; nothing of it lies on the host's client."""
    here = engine(additional_config={"fxhlo": {"target": "cpu"}})
    expected = [answers(here, temperature=0), answers(here, temperature=0.9, seed=3, top_p=0.8)]
    here.llm_engine.engine_core.shutdown()
    add_device(monkeypatch)
    keys: list[dict[str, Any]] = []
    monkeypatch.setattr(
        programs.Programs, "key", lambda self, own=programs.Programs.key: keys.append(own(self)) or keys[-1]
    )
    there = engine(additional_config={"fxhlo": {"target": NAME}})
    steps = there.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.runner.steps
    assert [answers(there, temperature=0), answers(there, temperature=0.9, seed=3, top_p=0.8)] == expected
    raw = pjrt.device(NAME).raw
    assert all(state.devices() == {raw} for state in steps._states)
    assert keys[0]["target"] == NAME and keys[0]["device"]["device"] == raw.device_kind and keys[0]["native"] is None
