"""`--pipeline-parallel-size` on the CPU's devices: the tokens of one device, and one clear error where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_meshes import answers

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
