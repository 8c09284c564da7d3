"""A profile has every step and its parts add up; what cannot be written is an error before serving; a planned engine serves from its plan."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from fxhlo.runtime.core import seal
from fxhlo.runtime.core.seal import SealedError
from fxhlo.runtime.vllm.profiling.summary import programs, steps_of, traces
from fxhlo.runtime.vllm.profiling.trace import PARTS, ProfileError, TraceFile
from fxhlo.runtime.vllm.steps.kinds import Limits
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.plan import make_plan

SIZES: dict[str, Any] = {
    "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 32, "kv_cache_memory_bytes": 16 << 20, "dtype": "float32",
    "load_format": "dummy", "skip_tokenizer_init": True, "seed": 0, "disable_log_stats": True,
}  # fmt: skip
LENGTHS = (1, 5, 40, 90, 17, 3)


def generate(llm: LLM, count: int = 6, **more: Any) -> None:
    prompts: list[Any] = [{"prompt_token_ids": [2 + at % 90 for at in range(length)]} for length in LENGTHS[:count]]
    llm.generate(prompts, SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, **more), use_tqdm=False)


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(LLM from a plan's file, whose whole life is in a profile; the folder of profiles; the scheduled steps)."""
    place = tmp_path_factory.mktemp("profiled")
    limits = Limits(32, 4, 127)
    plan = make_plan(limits, Costs(), budget=None)
    (place / "plan.json").write_text(json.dumps(plan.to_json()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("FXHLO_PROFILE", str(place / "profiles"))
        llm = LLM(str(folder), additional_config={"fxhlo": {"plan": str(place / "plan.json")}}, **SIZES)
        core: Any = llm.llm_engine.engine_core
        scheduled: list[tuple[int, int]] = []
        schedule = core.engine_core.scheduler.schedule

        def noted(*arguments: Any, **options: Any) -> Any:
            output = schedule(*arguments, **options)
            if output.total_num_scheduled_tokens:
                scheduled.append((output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)))
            return output

        core.engine_core.scheduler.schedule = noted
        generate(llm)
        llm.stop_profile()  # here, for each test that reads the trace: xdist may give the file's tests to two processes
        yield llm, place / "profiles", scheduled, plan
        core.shutdown()


def worker_of(llm: LLM) -> Any:
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker


def test_a_profile_has_every_step_and_its_parts_add_up(engine: Any) -> None:
    llm, place, scheduled, plan = engine
    worker = worker_of(llm)
    assert tuple(worker.runner.steps.programs) == plan.buckets
    with pytest.raises(SealedError):
        seal.check("compiling")
    (trace,) = traces(place)
    steps = steps_of(trace)
    assert [(step.tokens, step.requests) for step in steps] == scheduled
    for step in steps:
        assert sum(step.parts[part] for part in (*PARTS, "other")) == pytest.approx(step.host, rel=1e-3, abs=1e-5)
        assert all(seconds >= -1e-6 for seconds in step.parts.values())
        assert step.device > 0 and step.parts["dispatch"] > 0 and step.parts["inputs"] > 0
        assert step.program == str(worker.runner.steps.select(step.tokens, step.requests))
    assert sum(step.gap is None for step in steps) == 1, "the first one"
    rows = programs(steps)
    assert sum(row.steps for row in rows) == len(steps)
    assert sum(row.steps * row.tokens for row in rows) == pytest.approx(sum(tokens for tokens, _ in scheduled))


def test_a_trace_is_json_that_viewers_open(engine: Any) -> None:
    """Each span lies within its step, on a track that has a name."""
    _, place, _, _ = engine
    events = json.loads(traces(place)[0].read_text())
    spans = [event for event in events if event["ph"] == "X"]
    named = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(named.values()) >= {"device", "host"}
    assert {event["name"] for event in spans} >= {*PARTS, "step", "device", "gap"}
    assert all(event["tid"] in named and event["dur"] >= 0 and event["ts"] > 0 for event in spans)
    host = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if named[e["tid"]] == "host" and e["name"] in PARTS)
    assert all(one[1] <= next_one[0] + 0.01 for one, next_one in pairwise(host)), "no two overlap"


def test_a_process_that_takes_no_profile_runs_nothing_of_it(engine: Any) -> None:
    llm, place, scheduled, _ = engine
    worker, before = worker_of(llm), len(traces(place))
    llm.stop_profile()
    for owner, names in [
        (worker, ("execute_model", "sample_tokens")),
        (worker.runner.steps, ("start",)),
        (worker.runner.batch, ("inputs",)),
    ]:
        assert not set(names) & set(vars(owner))
    generate(llm, 2)
    assert len(traces(place)) == before
    llm.start_profile()
    try:
        scheduled.clear()
        generate(llm, 3, prompt_logprobs=1)
        assert len(scheduled) > 10
    finally:
        llm.stop_profile()
    newest = max(traces(place), key=lambda path: path.stat().st_mtime_ns)
    assert len(steps_of(newest)) == len(scheduled)


def test_some_steps_are_left_out_where_vllm_asks_for_it(engine: Any) -> None:
    llm, place, _, _ = engine
    worker_of(llm).profile(True, "mine", delay_iterations=2, max_iterations=5)
    generate(llm, 2)
    llm.stop_profile()
    (trace,) = [path for path in traces(place) if "mine" in path.name]
    assert len(steps_of(trace)) == 5


def test_a_disk_that_fills_up_ends_the_profile_alone(engine: Any) -> None:
    llm, _, _, _ = engine
    worker = worker_of(llm)
    worker.profile(True)
    recorder = worker._profiler._recorder
    file, said = recorder._trace._file, []
    recorder._failed = said.append
    with open("/dev/full", "w") as full:
        os.dup2(full.fileno(), file.fileno())
        for _ in range(6):
            generate(llm)
        worker.profile(False)
    assert [problem.errno for problem in said] == [errno.ENOSPC], "told once"
    generate(llm, 1)


@pytest.mark.parametrize("folder", ["file/below", "/proc/none", "full"])
def test_a_folder_that_cannot_be_written_is_an_error(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.trace.json").symlink_to("/dev/full")
    with pytest.raises(ProfileError, match="cannot be written") as raised:
        TraceFile(tmp_path / folder, "x")
    assert raised.value.where and "another folder" in str(raised.value.next_step)


def test_a_start_ends_where_the_profile_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("FXHLO_PROFILE", "/proc/none")
    with pytest.raises(ProfileError, match="cannot be written"):
        LLM(str(folder), **SIZES)


def test_a_killed_process_leaves_a_trace_that_is_read(engine: Any, tmp_path: Path) -> None:
    _, place, _, _ = engine
    whole = traces(place)[0].read_text()
    cut = tmp_path / "cut.trace.json"
    cut.write_text(whole[: len(whole) // 2])
    assert 0 < len(steps_of(cut)) < len(steps_of(traces(place)[0]))


def test_the_command_sums_up(engine: Any, tmp_path: Path) -> None:
    _, place, _, _ = engine
    said = command("profile", str(place))
    assert said.returncode == 0 and "steps of" in said.stdout and "read back" in said.stdout
    facts = json.loads(command("profile", str(place), "--json").stdout)
    assert facts["programs"][0]["steps"] > 1
    nothing = command("profile", str(tmp_path))
    assert nothing.returncode == 1 and "no profile here" in nothing.stderr


def command(*words: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-P", "-m", "fxhlo.tools.lower_model", *words)
    return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent)
