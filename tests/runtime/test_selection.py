"""Which target programs run on: each way to say so, and each thing that may be found, without starting a plugin."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fxhlo.runtime.core import plugins, selection
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.selection import select
from fxhlo.runtime.core.targets import KNOWN


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """machine(chips=(0, ""), gpu=False, plugin=False, platforms=None, card=""): what is found on it."""
    monkeypatch.delenv("FXHLO_TARGET", raising=False)

    def make(
        chips: tuple[int, str] = (0, ""),
        gpu: bool = False,
        plugin: bool = False,
        platforms: str | None = None,
        card: str = "",
    ) -> None:
        monkeypatch.setattr(selection, "tpu_chips", lambda: chips)
        monkeypatch.setattr(selection, "has_gpu", lambda: gpu)
        monkeypatch.setattr(selection, "has_cuda_plugin", lambda: plugin)
        monkeypatch.setattr(selection, "gpu_model", lambda: card)
        monkeypatch.setattr(plugins.jax, "config", type("Config", (), {"jax_platforms": platforms}))

    return make


@pytest.mark.parametrize(
    ("found", "target", "reason"),
    [
        ({}, "cpu", "no TPU chips; no GPU of NVIDIA's; the CPU is left"),
        ({"chips": (4, "v6e")}, "tpu-v6e", "this machine has 4 TPU chips of v6e"),
        ({"chips": (1, "tpu7x")}, "tpu-7x", "this machine has 1 TPU chip of tpu7x"),
        ({"chips": (4, "v6e"), "gpu": True, "plugin": True}, "tpu-v6e", "4 TPU chips"),
        ({"gpu": True, "plugin": True}, "cuda", "a GPU and jaxlib's CUDA plugin"),
        ({"gpu": True, "plugin": True, "card": "NVIDIA H200"}, "cuda-h200", "this machine has NVIDIA H200 and"),
        ({"gpu": True, "plugin": True, "card": "NVIDIA L4"}, "cuda", "this machine has NVIDIA L4 and"),
        ({"gpu": True}, "cpu", "a GPU of NVIDIA's without jaxlib's CUDA plugin"),
        ({"plugin": True}, "cpu", "no GPU of NVIDIA's"),
        ({"chips": (8, "v3")}, "cpu", "8 TPU chips of v3, which fxhlo has no target for"),
        ({"chips": (4, "v6e"), "platforms": "cpu"}, "cpu", "JAX_PLATFORMS leaves out tpu"),
        ({"gpu": True, "plugin": True, "platforms": "gpu"}, "cuda", "CUDA plugin"),
    ],
    ids=str,
)
def test_what_is_found(machine: Any, found: dict[str, Any], target: str, reason: str) -> None:
    machine(**found)
    chosen = select()
    assert str(chosen.target) == target
    assert reason in chosen.reason


@pytest.mark.parametrize("generation", [known.compiler_name for known in KNOWN.values() if known.family == "tpu"])
def test_every_generation_that_chips_have_is_a_target(machine: Any, generation: str) -> None:
    from jax._src.hardware_utils import TpuVersion

    assert generation in TpuVersion.__members__
    machine(chips=(4, generation))
    assert KNOWN[select().target.name].compiler_name == generation


def test_who_says_so_goes_first(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(chips=(4, "v6e"))
    monkeypatch.setenv("FXHLO_TARGET", "tpu-v5p:2x2x2")
    assert str(select()) == "tpu-v5p:2x2x2 (FXHLO_TARGET names it)"
    assert str(select("cpu")) == "cpu (the engine's config names it)"
    monkeypatch.setenv("FXHLO_TARGET", "tpu-v6")
    with pytest.raises(UnsupportedError, match=r"FXHLO_TARGET: there is no target 'tpu-v6'\n.*did you mean tpu-v6e"):
        select()
    assert str(select("cpu").target) == "cpu"


def test_nothing_is_left(machine: Any) -> None:
    machine(platforms="tpu")
    with pytest.raises(
        UnsupportedError, match=r"no TPU chips; no GPU .*the CPU is left, and JAX_PLATFORMS leaves out cpu"
    ):
        select()


def test_deciding_starts_no_client() -> None:
    script = (
        "from fxhlo.runtime.core.selection import select; from fxhlo.runtime.core.plugins import has_started\n"
        "select(); assert not has_started()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
