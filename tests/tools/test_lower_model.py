"""`lower-model` as people use it: results on stdout, the rest on stderr, one clear message and a non-zero exit for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fxhlo.tools import lower_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
BUCKET = "tokens=8,requests=8,num_blocks=16"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(*words): the command in this process."""

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lower-model", *map(str, words)])
        capfd.readouterr()
        try:
            lower_model.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        return Done(code, *capfd.readouterr())

    return call


def written(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tiny")) / "config.json"


# --- what comes out --------------------------------------------------------------------------------------------------


def test_a_config_alone_gives_stablehlo_on_stdout(config: Path) -> None:
    """The console script, in a process of its own: nothing but the module is on stdout."""
    command = [str(Path(sys.executable).with_name("lower-model")), str(config), "--bucket", BUCKET]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(("#loc", "module @", " ", "}")) for line in done.stdout.splitlines())
    assert "stablehlo.composite" in done.stdout
    assert "fxhlo.ragged_paged_attention" in done.stdout
    assert "tf.aliasing_output" in done.stdout
    assert "llama.py" in done.stdout, "locations carry the model's file"
    assert "capture" in done.stderr


@pytest.mark.parametrize(
    ("stage", "shows"),
    [
        ("capture", "torch.ops.fxhlo.attention"),
        ("passes", "torch.ops.fxhlo.ragged_paged_attention"),
        ("hlo", "stablehlo."),
    ],
)
def test_stop_after_shows_what_there_is(run: Run, config: Path, stage: str, shows: str) -> None:
    done = run(config, "--stop-after", stage, "--bucket", BUCKET)
    assert done.code == 0, done.err
    assert shows.removeprefix("torch.ops.") in done.out


def test_compile_tells_the_memory_and_json_the_facts(run: Run, config: Path) -> None:
    done = run(config, "--stop-after", "compile", "--bucket", BUCKET, "--target", "cpu", "--dtype", "float32", "--json")
    assert done.code == 0, done.err
    (module,) = json.loads(done.out)["modules"]
    assert (
        module["memory"]["aliased"] == 16 * 16 * 2 * 2 * 2 * 8 * 4
    )  # blocks, tokens, k and v, layers, heads, size, bytes
    became = {one["kernel"]: one["became"] for one in module["decisions"]}
    assert "fxhlo.sample" in became


def test_print_after_prints_the_graph_of_that_pass(run: Run, config: Path) -> None:
    done = run(config, "--stop-after", "passes", "--print-after", "paged-attention")
    assert done.code == 0, done.err
    assert "paged-attention" in done.out
    assert "kv_cache" in done.out


def test_files_and_bundles(run: Run, config: Path, tmp_path: Path) -> None:
    text, bytecode, bundle = tmp_path / "step.mlir", tmp_path / "step.mlirbc", tmp_path / "bundle"
    assert run(config, "--bucket", BUCKET, "-o", text).out == ""
    assert "module @" in text.read_text()
    assert run(config, "--bucket", BUCKET, "-o", bytecode).code == 0
    assert bytecode.read_bytes().startswith(b"ML\xefR")
    two = ("--bucket", BUCKET, "--bucket", "tokens=16,requests=8,num_blocks=16")
    assert run(config, *two, "-o", bundle, "--stop-after", "compile").code == 0
    done = run("inspect", bundle, "--json")
    assert set(json.loads(done.out)["entries"]) == {BUCKET, "tokens=16,requests=8,num_blocks=16"}


def test_the_same_call_twice_gives_the_same_text(run: Run, config: Path) -> None:
    first, second = (run(config, "--bucket", BUCKET).out for _ in range(2))
    assert first == second


def test_check_says_that_every_op_has_a_rule(run: Run, config: Path) -> None:
    done = run("check", config)
    assert done.code == 0, done.err
    assert "ops can be lowered" in done.out


def test_an_exported_program(run: Run, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(torch.nn.Linear(4, 8), (torch.ones(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "linear.pt2")
    done = run(tmp_path / "linear.pt2", "--bucket", "input.0=5")
    assert done.code == 0, done.err
    assert "tensor<5x8xf32>" in done.out


def test_help_teaches(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for word in ("Examples:", "--stop-after", "--bucket", "config.json", "check MODEL"):
        assert word in done.out


# --- what cannot be done -----------------------------------------------------------------------------------------


def failed(done: Done, *named: str) -> None:
    assert done.code == 1, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1, done.err
    assert "next:" in done.err
    for word in named:
        assert word in " ".join(done.err.split()), done.err


def test_errors_of_the_command_line(run: Run, config: Path, tmp_path: Path) -> None:
    failed(run("no/such/folder"), "no/such/folder")
    failed(run(config, "--bucket", "tokens=none"), "tokens=none", "NAME=NUMBER")
    failed(run(config, "--target", "abacus"), "abacus", "cpu")
    failed(run(config, "-o", tmp_path / "not" / "there.mlir"), "not")
    failed(run(config, "--print-after", "magic"), "magic", "paged-attention")
    failed(run("inspect", tmp_path), "manifest")
    assert run(config, "--stop-after", "lunch").code == 2


def test_errors_of_the_config(run: Run, tmp_path: Path) -> None:
    failed(run(tmp_path), "config.json")
    (tmp_path / "config.json").write_text("{ broken")
    failed(run(tmp_path), "not JSON", "config.json:1")
    (tmp_path / "config.json").write_text("{}")
    failed(run(tmp_path), "architectures")
    failed(run(written(tmp_path, architectures=["NobodysForCausalLM"])), "NobodysForCausalLM")
    failed(run(written(tmp_path, num_attention_heads=5, head_dim=None)), "5")
    alone = written(tmp_path, architectures=["NobodysForCausalLM"]) / "config.json"
    failed(run(alone), f"at: {alone}")


def test_a_bucket_that_the_model_does_not_have(run: Run, config: Path) -> None:
    failed(run(config, "--bucket", "token=8"), "token", "tokens")


def test_a_model_that_has_parts_which_are_not_supported(run: Run, tmp_path: Path) -> None:
    moe = written(
        tmp_path, architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=4, num_experts_per_tok=2
    )
    failed(run(moe), "expert")


def test_damaged_weights_are_named(run: Run, tmp_path: Path) -> None:
    (written(tmp_path) / "model.safetensors").write_bytes(b"\x10\x00\x00")
    failed(run(tmp_path), "model.safetensors")
