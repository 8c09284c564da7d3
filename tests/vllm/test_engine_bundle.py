"""Bundles of engines: made by `lower-model engine`, and an engine that starts from one, or says what does not match."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from fxhlo.lowering.capture import tracing
from fxhlo.runtime.core import pjrt, topology
from fxhlo.runtime.core.bundle import Bundle
from fxhlo.runtime.core.errors import BundleError, FxhloError, UnsupportedError
from fxhlo.runtime.core.native import build
from fxhlo.runtime.core.selection import Selection
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm import worker
from fxhlo.runtime.vllm.compat import engine_config_of
from fxhlo.runtime.vllm.settings import Settings
from fxhlo.runtime.vllm.steps import identity
from fxhlo.runtime.vllm.steps.engine_bundle import EngineBundle
from fxhlo.runtime.vllm.steps.programs import Programs
from fxhlo.tools.console import UsageError
from fxhlo.tools.lower import engine as engine_command
from fxhlo.tools.lower.engine import lower_engine

CPU = Target.parse("cpu")
SIZES = {
    "max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 8, "kv_cache_memory_bytes": 1 << 20, "dtype": "float32",
}  # fmt: skip
Engine = Callable[..., LLM]


def words(**changed: Any) -> list[str]:
    return [word for name, value in (SIZES | changed).items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """A bundle of the tiny model's engine, made from its config.json alone."""
    path = tmp_path_factory.mktemp("bundles") / "engine"
    lower_engine(str(folder / "config.json"), words(), CPU, path)
    return path


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FXHLO_NATIVE", "0")  # the cache of a test would build them anew
        yield patch


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    """engine(**arguments) -> LLM of the tiny model; in this process, on an empty cache."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("FXHLO_CACHE_DIR", str(tmp_path / "cache"))
    started: list[LLM] = []

    def start(**arguments: Any) -> LLM:
        llm = LLM(str(folder), skip_tokenizer_init=True, load_format="dummy", seed=0, **(SIZES | arguments))
        started.append(llm)
        return llm

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


PROMPTS = [[5, 6, 7], [11], [9, 8, 7, 6, 5, 4, 3]]


def answers(llm: LLM) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, detokenize=False)
    given = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return [list(one.outputs[0].token_ids) for one in llm.generate(given, sampling, use_tqdm=False)]


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(one.relative_to(folder)): (one.stat().st_size, one.stat().st_mtime_ns) for one in folder.rglob("*")}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing is traced or compiled")


def test_an_engine_starts_from_a_moved_bundle(
    made: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere, with other times, in a folder that is not written: the tokens of an engine that made its own programs."""
    expected = answers(engine())
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(made, moved, copy_function=shutil.copyfile)
    for path in [*moved.rglob("*"), moved]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, traces = content(moved), tracing.captures
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(Programs, "make", refuse)
    monkeypatch.setattr(pjrt.Device, "compile", refuse)
    sizes = {
        name: value for name, value in SIZES.items() if name != "kv_cache_memory_bytes"
    }  # the bundle has a number of blocks
    monkeypatch.setitem(SIZES, "kv_cache_memory_bytes", None)
    llm = engine(additional_config={"fxhlo": {"bundle": str(moved)}}, **sizes)
    assert llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == EngineBundle.open(moved).num_blocks
    assert answers(llm) == expected
    assert (content(moved), tracing.captures) == (before, traces)
    assert not (tmp_path / "cache").exists()


ELSEWHERE = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
out = os.dup(1)
os.dup2(2, 1)
from vllm import LLM, SamplingParams
model, bundle, sizes, prompts = json.loads(sys.argv[1])
llm = LLM(model, skip_tokenizer_init=True, load_format="dummy", seed=0, additional_config={"fxhlo": {"bundle": bundle}}, **sizes)
sampling = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, detokenize=False)
answers = llm.generate([{"prompt_token_ids": one} for one in prompts], sampling, use_tqdm=False)
from fxhlo.runtime.core import native
os.write(out, json.dumps([[list(one.outputs[0].token_ids) for one in answers], str(native.library())]).encode())
llm.llm_engine.engine_core.shutdown()
"""


def test_a_machine_without_a_compiler_takes_the_bundles_kernels(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The answers of an engine in plain StableHLO; the library is the bundle's."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "bundle"
    with monkeypatch.context() as with_kernels:
        with_kernels.delenv("FXHLO_NATIVE")
        with_kernels.setattr(build, "_loaded", None)  # it was decided without
        lower_engine(str(folder / "config.json"), words(), CPU, path)
    expected = answers(request.getfixturevalue("engine")())
    (library,) = Bundle.open(path).libraries
    elsewhere = {name: value for name, value in os.environ.items() if name != "FXHLO_NATIVE"}
    elsewhere |= {"CXX": "/no/compiler", "FXHLO_CACHE_DIR": str(tmp_path / "none"), "PYTHONSAFEPATH": "1"}
    given = json.dumps([str(folder), str(path), SIZES | {"kv_cache_memory_bytes": None}, PROMPTS])
    run = subprocess.run([sys.executable, "-c", ELSEWHERE, given], env=elsewhere, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout) == [expected, str(library)]
    assert not list((tmp_path / "none").rglob("*.so"))

    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=rf"(?s)damaged.*{library.name}"):
        EngineBundle.open(path)


def test_kernels_that_are_switched_off_do_not_match(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = EngineBundle.open(made)
    monkeypatch.setitem(bundle.identity, "native", "0123")
    monkeypatch.setattr(Bundle, "libraries", (made / "native" / "kernels.so",))
    here = identity.of_engine(engine_config_of(str(folder), words()), CPU)
    with pytest.raises(BundleError, match="native is 0123 in the bundle and FXHLO_NATIVE=0 switches"):
        bundle.check_early(here)
    monkeypatch.delenv("FXHLO_NATIVE")
    monkeypatch.setattr(build, "_loaded", None)
    with pytest.raises(BundleError, match=r"does not load here|has loaded other native kernels"):
        bundle.check_early(here)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"max_num_seqs": 6}, "--max-num-seqs is 4 in the bundle and 6 here"),
        ({"max_model_len": 128}, "--max-model-len is 64 in the bundle and 128 here"),
        ({"max_num_batched_tokens": 16}, "--max-num-batched-tokens is 8 in the bundle and 16 here"),
        (
            {"dtype": "bfloat16", "max_logprobs": 7},
            r"--dtype is float32 in the bundle and bfloat16 here; --max-logprobs is 20 .* 7 here",
        ),
    ],
    ids=str,
)
def test_other_options(made: Path, folder: Path, changed: dict[str, Any], what: str) -> None:
    bundle = EngineBundle.open(made)
    bundle.check(identity.of_engine(engine_config_of(str(folder), words()), CPU), whole=False)
    with pytest.raises(BundleError, match=rf"the bundle does not fit this engine: .*{what}") as caught:
        bundle.check(identity.of_engine(engine_config_of(str(folder), words(**changed)), CPU), whole=False)
    assert str(made) in str(caught.value) and "lower-model engine MODEL" in str(caught.value)


def test_another_model_or_version(made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3, "rope_theta": 5000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    bundle = EngineBundle.open(made)
    with pytest.raises(BundleError, match=r"model\.num_hidden_layers is 2 in the bundle and 3 here; model\.rope"):
        bundle.check(identity.of_engine(engine_config_of(str(tmp_path), words()), CPU), whole=False)
    monkeypatch.setattr(identity, "source_digest", lambda: "another")
    with pytest.raises(BundleError, match=r"engine: versions\.fxhlo is \w+ in the bundle and another here\n"):
        bundle.check(identity.of_engine(engine_config_of(str(folder), words()), CPU), whole=False)


def test_another_device(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = identity.of_engine(engine_config_of(str(folder), words()), CPU)
    device = {**pjrt.fingerprint("cpu"), "features": "other"}
    with pytest.raises(
        BundleError, match=r"device\.features is \w+ in the bundle and other here; the target is cpu .* tpu-v6e here"
    ):
        EngineBundle.open(made).check({**here, "target": "tpu-v6e", "device": device}, whole=False)


def test_a_topology_that_nobody_named_is_the_bundles(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = EngineBundle.open(made)
    monkeypatch.setitem(bundle.identity, "target", "tpu-v6e:2x4")
    monkeypatch.setattr(worker, "select", lambda asked: Selection(Target.parse(asked or "tpu-v6e"), "found"))
    assert str(worker.selected(Settings(), bundle).target) == "tpu-v6e:2x4"
    assert str(worker.selected(Settings("tpu-v6e:2x2"), bundle).target) == "tpu-v6e:2x2"
    assert str(worker.selected(Settings("cpu"), bundle).target) == "cpu"


def test_an_engine_that_does_not_match_reads_no_weights(
    made: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "build_model", refuse)
    with pytest.raises(BundleError, match="--max-num-seqs is 4 in the bundle and 6 here"):
        engine(additional_config={"fxhlo": {"bundle": str(made)}}, max_num_seqs=6)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"kv_cache_memory_bytes": 2 << 20}, r"the number of KV blocks is \d+ in the bundle and \d+ here"),
        ({"num_gpu_blocks_override": 100}, r"the number of KV blocks is \d+ in the bundle and 100 here"),
        ({"block_size": 32}, r"--block-size is 16 in the bundle and 32 here"),
    ],
    ids=["bytes", "blocks", "block size"],
)
def test_another_cache_is_named_before_weights_are_read(
    made: Path, engine: Engine, changed: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.FxhloWorker, "_loaded", refuse)
    with pytest.raises(BundleError, match=what):
        engine(additional_config={"fxhlo": {"bundle": str(made)}}, **changed)


def damage(path: Path, how: str) -> Path:
    """Damages a file of the bundle; returns what the error names."""
    if how == "manifest":
        (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"engine"', '"motor"', 1))
        return path / "manifest.json"
    file = next((path / how).iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    return file


@pytest.mark.parametrize("how", ["executables", "modules", "manifest"])
def test_a_damaged_file(made: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "engine"
    shutil.copytree(made, path)
    file = damage(path, how)
    with pytest.raises(BundleError, match="damaged") as caught:
        EngineBundle.open(path)
    assert str(file) in str(caught.value)
    if how != "manifest":
        os.remove(file)
        with pytest.raises(BundleError, match="it is missing"):
            EngineBundle.open(path)


def test_a_bundle_of_something_else(tmp_path: Path) -> None:
    import torch

    import fxhlo

    fxhlo.lower(torch.nn.ReLU(), (torch.ones(4),)).save(tmp_path / "relu")
    with pytest.raises(BundleError, match="the bundle holds no engine"):
        EngineBundle.open(tmp_path / "relu")
    with pytest.raises(BundleError, match="no such folder"):
        EngineBundle.open(tmp_path / "nothing")


def test_an_executable_for_another_machine_is_not_made_anew(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = EngineBundle.open(made)
    monkeypatch.setattr(pjrt, "fingerprint", lambda target: {"jaxlib": "another"})
    monkeypatch.setattr(pjrt, "compile", refuse)
    with pytest.raises(BundleError, match=r"does not load here as it is stored: .*jaxlib"):
        bundle.executables([str(bundle.buckets[0])])


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_bundle_holds_each_program_for_its_target(made: Path) -> None:
    bundle, manifest = EngineBundle.open(made), Bundle.open(made)
    assert list(manifest.entries) == [str(bucket) for bucket in bundle.buckets]
    for entry in manifest.entries.values():
        assert entry.builds["cpu"].executable is not None
    assert str(made.parent) not in (made / "manifest.json").read_text(), "no path is part of it"


def test_facts_for_scripts(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXHLO_NATIVE", "0")
    lower_engine(str(folder), words(max_num_batched_tokens=4), CPU, None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    (program,) = facts["programs"]
    assert program["name"] == "tokens=4,requests=4" and program["arguments"] > facts["weights"] + facts["caches"] > 0
    assert facts["fits"] and facts["needed"] <= facts["memory"]
    assert facts["sizes"]["num_blocks"] * 2 * 16 * 4 * 8 * 4 == facts["caches"], (
        "two layers of 2 heads, keys and values"
    )
    assert facts["written"] is None


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (["--max-num-sequences", "4"], "unrecognized arguments: --max-num-sequences"),
        (["--max-num-seqs", "many"], "invalid int value"),
        (["--model", "x"], "this command's own"),
        (["--max-num-seqs", "0"], "vLLM does not take these options: "),
        (["--max-model-len", "1000000"], "vLLM does not take these options: "),
        (["--additional-config", '{"fxhlo": {"target": "tpu-v6e"}}'], "names the target tpu-v6e, and --target cpu"),
        (["--additional-config", '{"fxhlo": {"bundle": "there"}}'], "names a bundle, and this command makes one"),
        (["--additional-config", '{"fxhlo": {"budget": "much"}}'], "--additional-config: the budget 'much' is not understood"),
        (["--additional-config", '{"fxhlo": {"budget": "1KB"}}'], "--additional-config: the budget is less than one program"),
        (["--additional-config", '{"fxhlo": {"lengths": "none.csv"}}'], "none.csv"),
        (["--additional-config", '{"fxhlo": {"budgt": "3"}}'], "fxhlo has no option 'budgt'"),
        (["--additional-config", "[1]"], r"\[1\] is no mapping"),
    ],
    ids=str,
)
def test_words_that_are_no_options(folder: Path, extra: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        lower_engine(str(folder), extra, CPU, None)


def test_a_bad_limit_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXHLO_CACHE_GIB", "much")
    monkeypatch.setattr(engine_command, "load_libraries", refuse)
    with pytest.raises(UsageError, match=r"FXHLO_CACHE_GIB is 'much'.*\n  next: set it to 16"):
        lower_engine(str(folder), words(), CPU, None)


def test_a_card_whose_compiler_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "has_cuda_plugin", lambda: False)
    monkeypatch.setattr(engine_command, "load_libraries", refuse)
    with pytest.raises(UnsupportedError, match="jax's CUDA plugin is not installed"):
        lower_engine(str(folder), words(), Target.parse("cuda-h100"), None)


def test_a_topology_that_the_compiler_does_not_know(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libtpu")
    monkeypatch.setattr(engine_command, "load_libraries", refuse)
    with pytest.raises(UsageError, match="--target tpu-v6e:3x5: libtpu gives no topology"):
        lower_engine(str(folder), words(), Target.parse("tpu-v6e:3x5"), None)


def test_more_devices_than_the_topology_has(folder: Path) -> None:
    pytest.importorskip("libtpu")
    target = Target.parse("tpu-v6e:1x1")
    with pytest.raises(UsageError, match="the engine has 2 devices: tpu-v6e:1x1 has 1"):
        lower_engine(str(folder), [*words(), "--tensor-parallel-size", "2"], target, None)


def test_the_command_that_serves_keeps_the_users_own_config(folder: Path, tmp_path: Path) -> None:
    option = '{"theirs": {"x": [1, "a b"]}, "fxhlo": {"budget": "3", "target": "cpu"}}'
    for given, own in (
        (["--max-num-seqs", "4", "--additional-config", option], {"theirs": {"x": [1, "a b"]}, "fxhlo": {"target": "cpu"}}),
        ([f"--additional_config={option}", "--max-num-seqs", "4"], {"theirs": {"x": [1, "a b"]}, "fxhlo": {"target": "cpu"}}),
        (["--max-num-seqs", "4", "--additional-config.more=5", "--additional-config.fxhlo.budget", "3s"], {"more": 5, "fxhlo": {}}),
    ):  # fmt: skip
        config = engine_config_of(str(folder), given)
        command = shlex.split(engine_command.serve_command(str(folder), given, config, tmp_path / "a bundle"))
        assert command[:6] == ["vllm", "serve", str(folder), "--max-num-seqs", "4", "--additional-config"]
        own["fxhlo"]["bundle"] = str(tmp_path / "a bundle")
        assert (json.loads(command[-1]), len(command)) == (own, 7)


def test_what_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(FxhloError, match="something else than a bundle, and it is not overwritten"):
            lower_engine(str(folder), words(), CPU, place)
    with pytest.raises(UnsupportedError, match="pipelines with asynchronous scheduling"):
        lower_engine(str(folder), [*words(), "--pipeline-parallel-size", "2", "--async-scheduling"], CPU, None)
