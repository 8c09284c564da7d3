"""A model folder is judged by its files' headers, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fxhlo.runtime.vllm.folder import ModelError, check_folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file({"a": np.zeros((8, 8), np.float32), "b": np.ones(3, np.int8)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_whole_folder_passes(whole: Path) -> None:
    check_folder(whole)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights") as caught:
        check_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "--load-format dummy" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 20, 150, 300])
def test_a_file_cut_anywhere(whole: Path, keep: int) -> None:
    file = whole / "model.safetensors"
    data = file.read_bytes()
    assert keep < len(data)
    file.write_bytes(data[:keep])
    with pytest.raises(ModelError, match="truncated or damaged") as caught:
        check_folder(whole)
    assert "again" in str(caught.value)


def test_a_header_that_is_not_json(whole: Path) -> None:
    (whole / "model.safetensors").write_bytes((10).to_bytes(8, "little") + b"x" * 10)
    with pytest.raises(ModelError, match=r"truncated or damaged \(invalid JSON in header"):
        check_folder(whole)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": ["a"]}', '{"metadata": {}}'])
def test_an_index_that_is_none(whole: Path, index: str) -> None:
    (whole / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="the index of the weight files cannot be read") as caught:
        check_folder(whole)
    assert caught.value.where == str(whole / "model.safetensors.index.json")


def test_a_part_that_the_index_names_is_missing(whole: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "c": "model-2.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing"):
        check_folder(whole)
