"""NVIDIA's cards as targets: compiled for without one where jax's CUDA plugin is installed, and refused with what to install where it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fxhlo.runtime.core import pjrt, topology
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.plugins import has_cuda_plugin, has_gpu
from fxhlo.runtime.core.targets import KNOWN, Target

CARDS = [name for name, known in KNOWN.items() if known.gpu is not None]
DOUBLED = """module @d { func.func public @main(%x: tensor<8x128xf32>) -> tensor<8x128xf32> {
  %0 = stablehlo.add %x, %x : tensor<8x128xf32>
  return %0 : tensor<8x128xf32> } }"""
plugin = pytest.mark.skipif(not has_cuda_plugin(), reason="jax's CUDA plugin is not installed (docs/quickstart_gpu.md)")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_what_reports_and_kernels_ask_for(name: str) -> None:
    card = Target(name)
    assert card.family == "cuda" and card.memory and card.bandwidth and card.device_kind.startswith("NVIDIA ")
    assert (card.flops("bfloat16") or 0) > 1e14
    text = topology.description(card)
    assert card.gpu is not None and card.memory == card.gpu.memory * 3 // 4  # jax's client takes as much
    assert f"device_memory_size: {card.gpu.memory}" in text and f'"{card.device_kind}"' in text
    assert text.count("{") == text.count("}") == 3


def test_any_card_is_compiled_for_where_it_is() -> None:
    with pytest.raises(
        UnsupportedError, match=r"cuda is compiled on a machine that has one.*\n.*name a card, as cuda-h100"
    ):
        pjrt.compile_ahead(DOUBLED, "cuda")


def test_without_the_plugin_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "has_cuda_plugin", lambda: False)
    topology._card.cache_clear()
    with pytest.raises(UnsupportedError, match=r"it needs no GPU for that\n.*pip install 'jax-cuda13-plugin=="):
        pjrt.compile_ahead(DOUBLED, "cuda-h100")


@plugin
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_a_program_for_each_card_without_one_and_nothing_printed() -> None:
    """Untuned, so that no card takes the executable for its own."""
    code = (
        "from fxhlo.runtime.core import pjrt; import sys\n"
        f"sizes = [pjrt.build({DOUBLED!r}, name).memory.arguments for name in sys.argv[1:]]\n"
        "print(*sizes, *(pjrt.fingerprint('cuda-h100')[name] for name in ('options', 'device')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *CARDS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("4096 4096 4096 4096 xla_gpu_autotune_level=0 NVIDIA H100 80GB HBM3\n", "")
