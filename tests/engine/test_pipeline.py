"""`--pipeline-parallel-size` on the CPU's devices: the tokens of one device, and one clear error where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_meshes import LATENT, RECURRENT, answers

LAYERS = 4


@pytest.mark.parametrize(
    "split",
    [[2, 2], pytest.param([1, 2], marks=pytest.mark.conformance), pytest.param([1, 4], marks=pytest.mark.conformance)],
)
def test_the_tokens_of_one_device(split: list[int], tmp_path: Path) -> None:
    """Devices of a stage, and stages; prompts in chunks, several steps under way; one matrix for embedding and head, which first and last
    stage have. More devices than there are."""
    found = answers(tmp_path, [1, split, [2, 4]], num_hidden_layers=LAYERS, tie_word_embeddings=True)
    made = found[str(split)]
    assert made["tokens"] == found["1"]["tokens"]
    assert (made["world"], made["compiled"]) == (1, 0)
    if split == [1, 2]:
        assert made["blocks"] == pytest.approx(2 * found["1"]["blocks"], abs=2)
    assert "this process has 4 of cpu" in found["[2, 4]"]


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("splits", "config"),
    [
        pytest.param([["2/2", 2]], {"num_key_value_heads": 1}, id="context"),
        pytest.param([[1, 2], [2, 2]], LATENT, id="latents"),
        pytest.param([[2, 2]], {**RECURRENT, "layer_types": RECURRENT["layer_types"] * 2}, id="recurrent"),
    ],
)
def test_other_kinds_of_caches_in_stages(splits: list[Any], config: dict[str, Any], tmp_path: Path) -> None:
    """Blocks of the same heads on several devices of each stage, latents with experts, states beside keys."""
    found = answers(tmp_path, [1, *splits], num_hidden_layers=LAYERS, **config)
    for split in splits:
        assert found[str(split)]["tokens"] == found["1"]["tokens"], split
        assert found[str(split)]["compiled"] == 0
