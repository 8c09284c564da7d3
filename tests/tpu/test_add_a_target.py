"""docs/add_a_target.md is true: its snippet runs, and a target that somebody registers is one like the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.targets import KNOWN, Specification, Target, register

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's two files: lab.py and one that uses it."""
    folder = tmp_path_factory.mktemp("lab")
    backend, use = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "add_a_target.md").read_text(), re.M | re.S)
    (folder / "lab.py").write_text(backend)
    (folder / "use.py").write_text(use)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_the_snippets_run(lab: Path) -> None:
    out = ran(lab, sys.executable, "use.py").stdout
    assert "256: lab; \n100: " in out
    assert "lab: rows of 100 numbers are no multiple of 128" in out


@pytest.mark.conformance
def test_the_commands_run(lab: Path) -> None:
    """With kernels of the target's own, and a report, since its rates are known."""
    command = str(Path(sys.executable).with_name("lower-model"))
    sizes = ("--bucket", "tokens=8,requests=8,num_blocks=16", "--max-model-len", "64", "--dtype", "float32")
    words = ("--import", "lab.py", "--target", "lab-1")
    done = ran(lab, command, "config.json", *words, *sizes, "--stop-after", "compile", "--explain")
    assert "for lab-1" in done.stdout and "It fits" in done.stdout
    assert re.search(r"fxhlo\.linear\s*│\s*\d+\s*│ lab ", done.stderr), done.stderr
    done = ran(lab, command, "conformance", *words, "--no-ops", "--kernel", "grouped_matmul")
    assert "cases compile for lab-1" in done.stderr


def test_a_registered_target() -> None:
    specification = Specification(family="cpu", memory=2**30, bandwidth=1e9)
    register("test-lab", specification)
    register("test-lab", specification)  # the same again is no mistake
    assert Target.parse("test-lab").memory == KNOWN["test-lab"].memory == 2**30
    with pytest.raises(UnsupportedError, match="there is a target cpu already"):
        register("cpu", specification)


def test_the_table_of_targets_is_what_the_code_knows() -> None:
    text = (ROOT / "docs" / "targets.md").read_text()
    for name, known in KNOWN.items():
        if known.family != "tpu":
            continue
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert known.memory and known.bandwidth
        assert f"{known.memory / 2**30:.2f} GiB | {known.bandwidth / 1e9:,.0f} GB/s" in row
        assert f"{known.flops['bfloat16'] / 1e12:.0f} TFLOP/s | {known.vmem // 2**20} MiB | {known.topology} |" in row
