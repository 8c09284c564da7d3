"""`lower-model` as people use it: results on stdout, the rest on stderr, one clear message and a non-zero exit for an error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fxhlo.passes import mlir
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


def test_compile_prints_what_was_compiled(run: Run, config: Path) -> None:
    done = run(config, "--stop-after", "compile", "--bucket", BUCKET, "--dtype", "float32")
    assert done.code == 0, done.err
    assert f"{BUCKET} compiled for cpu" in done.out
    assert "aliased" in done.out and "KiB" in done.out


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


def test_both_texts_of_what_the_target_gets(run: Run, config: Path) -> None:
    done = run(config, "--bucket", BUCKET, "--legalized", "--optimized", "--dtype", "float32")
    assert done.code == 0, done.err
    legalized, optimized = done.out.split("// -----\n")
    assert legalized.startswith(f"// {BUCKET}: legalized\n")
    assert "stablehlo.composite" not in legalized and "stablehlo." in legalized
    assert optimized.startswith(f"// {BUCKET}: optimized\n")
    assert "ENTRY " in optimized and "fusion" in optimized


def test_long_signatures_have_a_line_for_each_argument(run: Run, config: Path, tmp_path: Path) -> None:
    text = run(config, "--bucket", BUCKET).out
    (start,) = (place for place, line in enumerate(text.splitlines()) if "func.func public @main(" in line)
    signature = text.splitlines()[start : start + 40]
    assert sum(line.lstrip().startswith("%arg") for line in signature) > 20
    module = mlir.parse(text, mlir.context())
    assert module.operation.verify()


def test_the_sizes_of_the_engine_where_none_is_given(run: Run, config: Path) -> None:
    done = run(config, "--max-model-len", 256, "--block-size", 32)
    assert done.code == 0, done.err
    assert "sizes: tokens=1024,requests=64,num_blocks=" in done.err
    assert "as in the largest step of vLLM's engine" in done.err
    assert "tensor<1024xi32>" in done.out and "x32x4x8x" in done.out, "pages of 32 tokens"
    alone = run(config, "--bucket", "tokens=8", "--json")
    assert json.loads(alone.out)["modules"][0]["bindings"]["requests"] == 8, "no more requests than tokens"


def test_an_option_of_a_pass(run: Run, config: Path) -> None:
    done = run(config, "--bucket", BUCKET, "--pass-option", "paged-attention.block_size=64")
    assert done.code == 0, done.err
    assert "x64x4x8x" in done.out


def test_passes_are_listed_with_their_options(run: Run) -> None:
    text = run("--list-passes").out
    assert "--pass-option paged-attention.block_size=16   (a whole number)" in text
    facts = json.loads(run("--list-passes", "--json").out)
    (mode,) = (one for step in facts for one in step["options"] if one["name"] == "mode")
    assert (mode["default"], "processed_logits" in mode["takes"]) == ("raw_logprobs", True)


def test_what_rewrites_declined_is_explained_with_the_line(run: Run, tmp_path: Path) -> None:
    """GPT-2 keeps its weights as [inputs, outputs]."""
    changes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_inner": 64}
    model = written(tmp_path, architectures=["GPT2LMHeadModel"], model_type="gpt2", **changes)
    done = run(model, "--bucket", BUCKET, "--explain", "--json")
    assert done.code == 0, done.err
    notes = json.loads(done.out)["notes"]
    assert {note["rewrite"] for note in notes} >= {"select-rows"}
    assert all(":" in note["where"] for note in notes), notes
    assert "select-rows left" in done.err


def test_a_bundle_says_that_it_has_no_weights(run: Run, config: Path, tmp_path: Path) -> None:
    done = run(config, "--bucket", BUCKET, "-o", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert "the bundle holds no weights" in done.err
    exported = torch.export.export(torch.nn.Linear(4, 8), (torch.ones(3, 4),))
    torch.export.save(exported, tmp_path / "linear.pt2")
    done = run(tmp_path / "linear.pt2", "-o", tmp_path / "linear")
    assert "no weights" not in done.err
    assert "2 weights" in run("inspect", tmp_path / "linear").out


def test_one_device_of_a_topology_is_used(run: Run, config: Path) -> None:
    done = run(config, "--bucket", BUCKET, "--target", "tpu-v6e:2x2")
    assert "one device is used: tpu-v6e:2x2 has 4 chips" in done.err


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
    for word in ("Examples:", "--stop-after", "--bucket", "config.json", "check MODEL", "Exit codes:", "--pass-option"):
        assert word in done.out


# --- what cannot be done -----------------------------------------------------------------------------------------


def failed(done: Done, *named: str, code: int = 1) -> None:
    assert done.code == code, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1, done.err
    assert "next:" in done.err
    for word in named:
        assert word in " ".join(done.err.split()), done.err


def test_errors_of_the_command_line(run: Run, config: Path, tmp_path: Path) -> None:
    failed(run("no/such/folder"), "no/such/folder")
    failed(run(config, "-o", tmp_path / "not" / "there.mlir"), "not")
    failed(run("inspect", tmp_path), "manifest")
    assert run(config, "--stop-after", "lunch").code == 2


NOT_CAPTURED = [
    (("--bucket", "tokens=none"), ("tokens=none", "NAME=NUMBER")),
    (("--bucket", "tokens=0"), ("tokens=0", "at least 1")),
    (("--bucket", "tokens=99999999999"), ("2147483647",)),
    (("--bucket", "token=8"), ("token=8", "did you mean tokens?", "num_blocks")),
    (("--target", "abacus"), ("--target abacus", "cpu")),
    (("--print-after", "magic"), ("--print-after magic", "paged-attention")),
    (("--pass-option", "paged-atention.block_size=8"), ("did you mean paged-attention",)),
    (("--pass-option", "paged-attention.blocksize=8"), ("did you mean block_size?",)),
    (("--pass-option", "paged-attention.block_size=eight"), ("'eight'", "a whole number")),
    (("--pass-option", "paged-attention.block_size=0"), ("at least 1",)),
    (("--pass-option", "sample.mode=loud"), ("'loud'", "raw_logprobs or")),
    (("--pass-option", "block_size"), ("PASS.OPTION=VALUE",)),
    (("--optimized", "--stop-after", "passes"), ("--optimized", "leave out --stop-after")),
]


@pytest.mark.parametrize(("words", "named"), NOT_CAPTURED, ids=lambda part: " ".join(part))
def test_what_does_not_exist_is_said_before_anything_is_captured(
    run: Run, config: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    done = run(config, *words)
    failed(done, *named, code=2)
    assert "capture " not in done.err


def test_a_bad_limit_of_the_cache_is_said_by_what_compiles(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server says it; nothing else reads it."""
    monkeypatch.setenv("FXHLO_CACHE_GIB", "much")
    done = run(config, "--stop-after", "compile")
    failed(done, "FXHLO_CACHE_GIB is 'much'", "set it to 16", code=2)
    assert "libraries " not in done.err
    assert run(config, "--stop-after", "capture").code == 0


def test_other_commands_say_what_does_not_exist(run: Run, config: Path, tmp_path: Path) -> None:
    assert run(config, "--bucket", BUCKET, "-o", tmp_path / "bundle").code == 0
    failed(run("inspect", tmp_path / "bundle", "--entry", "tokens=9"), "its entries are", BUCKET, code=2)
    failed(run("conformance", "--kernel", "sampel"), "did you mean sample?", code=2)
    failed(run("conformance", "--target", "abacus"), "--target abacus", code=2)
    assert run().code == run("--nosuch").code == run("check").code == 2


def test_places_that_cannot_be_written(run: Run, config: Path, tmp_path: Path) -> None:
    """Said before anything is captured, and nothing is left or overwritten."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    failed(run(config, "-o", tmp_path / "mine"), "not overwritten", "name another folder")
    (tmp_path / "model").mkdir()
    (written(tmp_path / "model") / "manifest.json").write_text('{"files": {}}')  # another tool's
    failed(run(config, "-o", tmp_path / "model"), "not overwritten")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "manifest.json"]
    done = run(config, "--html", tmp_path)
    assert (done.code, "a folder" in done.err) == (2, True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.conformance
def test_stdout_that_cannot_be_written(config: Path) -> None:
    """A full disk is an error; a reader that has gone is none. Neither is a traceback."""
    command = [str(Path(sys.executable).with_name("lower-model")), str(config), "--bucket", BUCKET]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, "Traceback" in errors, "error:" in errors) == (0, False, False), errors


def test_an_interrupt_ends_at_once_also_inside_of_a_compiler() -> None:
    """A C call of minutes that releases the GIL stands for one: Python's own handler would wait until it returns."""
    script = """
import hashlib, sys, typer
from fxhlo.tools import console
app = typer.Typer()
@app.command()
def command() -> None:
    console.say("compiling")
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**30)
sys.exit(console.run(app, [], "command"))
"""
    with subprocess.Popen([sys.executable, "-P", "-c", script], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "compiling\n"
        time.sleep(1.0)  # until it is inside
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read().endswith("interrupted\n")


def test_errors_of_the_config(run: Run, tmp_path: Path) -> None:
    failed(run(tmp_path), "config.json")
    (tmp_path / "config.json").write_text("{ broken")
    failed(run(tmp_path), "not JSON", "config.json:1")
    (tmp_path / "config.json").write_text("{}")
    failed(run(tmp_path), "architectures")
    (tmp_path / "config.json").write_text("[1]")
    failed(run(tmp_path), "config.json holds a list, not an object")
    failed(run(written(tmp_path, architectures=[3])), "architectures", "list of names")
    failed(run(written(tmp_path, hidden_size="many")), "hidden_size", "many")
    failed(run(written(tmp_path, num_attention_heads=5, head_dim=None)), "5")
    alone = written(tmp_path, architectures=["NobodysForCausalLM"]) / "config.json"
    failed(run(alone), f"at: {alone}")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LamaForCausalLM", "LlamaForCausalLM"),
        ("MyLlamaForCausalLM", "LlamaForCausalLM"),
        ("Qwen2ForCausalLm", "Qwen2ForCausalLM"),
        ("Qwen9ForRewardModel", "Qwen2ForRewardModel"),
        ("NobodysForCausalLM", None),
        ("FooBarForConditionalGeneration", None),
        ("AcmeForSequenceClassification", None),
        ("MyModel", None),
        ("ForCausalLM", None),
    ],
)
def test_an_unknown_class_gets_neighbours_of_its_family_or_nothing(
    run: Run, tmp_path: Path, name: str, near: str | None
) -> None:
    """`ForCausalLM` is shared by hundreds of names, which makes none of them a neighbour."""
    done = run(written(tmp_path, architectures=[name]))
    failed(
        done, name, f"did you mean {near}" if near == "Qwen2ForCausalLM" else near or "if the class is yours: --import"
    )
    assert ("did you mean" in done.err) == (near is not None)


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads"]
)
def test_a_size_below_one_is_named(run: Run, tmp_path: Path, name: str, size: int) -> None:
    failed(run(written(tmp_path, **{name: size})), f"{name} is {size}", f"at: {tmp_path}/config.json")


def test_a_size_is_named_as_the_config_names_it(run: Run, tmp_path: Path) -> None:
    sizes = {"n_layer": 0, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes})
    )
    failed(run("check", tmp_path), "n_layer is 0")


def test_a_longer_sequence_than_the_model_has_is_the_options_fault(run: Run, config: Path) -> None:
    for words in ((config,), ("check", config)):
        failed(run(*words, "--max-model-len", 1000), "--max-model-len 1000", "256 positions", "at most 256", code=2)


def test_imports_that_are_not_there_and_that_fail(run: Run, config: Path, tmp_path: Path) -> None:
    """What does not exist is the command's fault; what raises is the module's."""
    for word in ("nosuchmod", "nosuchmod.part", "json.nosuch", "a..b", "no such", str(tmp_path / "nosuch.py")):
        failed(run(config, "--import", word), f"--import {word}", code=2)
    (tmp_path / "needs.py").write_text("import json\nimport nosuchmod\n")
    failed(run(config, "--import", tmp_path / "needs.py"), "No module named 'nosuchmod'", "needs.py:2")
    (tmp_path / "broken.py").write_text("a = 1\nb = = 2\n")
    failed(run("check", config, "--import", tmp_path / "broken.py"), "SyntaxError", "broken.py:2")


def test_times_are_of_the_whole_command(run: Run, config: Path) -> None:
    """Imports and vLLM's config have rows, several buckets are added up, and what is in no stage has one too."""
    done = run(config, "--timing", "--bucket", BUCKET, "--bucket", "tokens=16,requests=8,num_blocks=16")
    rows = {cells[1].strip(): cells[2].strip() for line in done.err.splitlines() if len(cells := line.split("│")) > 3}
    assert list(rows)[:4] == ["libraries", "config", "capture", "passes"]
    assert list(rows)[-2:] == ["other", "all"]
    lines = [line.split() for line in done.err.splitlines() if line.startswith("hlo ")]
    assert len(lines) == 2
    assert float(rows["hlo"]) == pytest.approx(sum(float(words[1]) for words in lines), abs=0.011)


def test_a_model_that_has_parts_which_are_not_supported(run: Run, tmp_path: Path) -> None:
    quantized = written(tmp_path, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})
    failed(run(quantized), "fp8 quantization")


def test_damaged_weights_are_named(run: Run, tmp_path: Path) -> None:
    (written(tmp_path) / "model.safetensors").write_bytes(b"\x10\x00\x00")
    failed(run(tmp_path), "model.safetensors")
